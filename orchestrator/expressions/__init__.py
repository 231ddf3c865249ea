"""The language of definitions: paths into values, templates that hold them, expressions that compute with them.

Pure and bounded. Values are JSON: nothing here can reach an attribute, a method or a module.
"""

from orchestrator.expressions.conditions import compile_expression, states_named
from orchestrator.expressions.evaluation import Expression
from orchestrator.expressions.paths import Lookup, Missing, Path, lookup_in, path_text, value_at

__all__ = [
    "Expression",
    "Lookup",
    "Missing",
    "Path",
    "compile_expression",
    "lookup_in",
    "path_text",
    "states_named",
    "value_at",
]
