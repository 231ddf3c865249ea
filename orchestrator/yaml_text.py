"""YAML text as JSON values, by the rules of YAML 1.2: ``on`` is a word, ``1e-3`` a number, ``2026-01-01`` a text.

The library reads YAML 1.1, in which these three are true, a text and a date. Only its parser is used here; what a
plain scalar means is said here, so that a definition means the same as YAML and as JSON.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from orchestrator.documents import escaped
from orchestrator.errors import UnreadableText
from orchestrator.lasting import uncollected

_Parser: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: Mapping[str, bool | None] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_NO_NUMBER = re.compile(r"NaN|[-+]?Infinity")
"""What Python writes in place of a number; as a text, which YAML takes it for, it would pass unseen."""
_TAG = "tag:yaml.org,2002:"
_RESOLVER: Any = yaml.resolver.Resolver()
"""Tells whether a tag that was written is the one that the library would give a scalar by itself."""
_UNSAID = "not said"
"""In place of the tag of a plain scalar that has none; nobody can write it, for a tag holds no blank."""
MOST_NODES = 1_000_000
"""Aliases of aliases can grow a small text into an endless value."""
MAX_DEPTH = 64


_MOST_DIGITS = 1000


class _Loader(_Parser):  # type: ignore[misc]
    """Leaves open what a plain scalar means: the library would try the patterns of YAML 1.1 on each of them."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        """Return the tag of a node that has none."""
        if kind is yaml.ScalarNode:
            return _UNSAID if implicit[0] else f"{_TAG}str"
        return f"{_TAG}map" if kind is yaml.MappingNode else f"{_TAG}seq"


def read_yaml(text: str) -> list[tuple[Any, Mapping[str, int]]]:
    """Return the documents in a YAML text, each with the line of every value in it, by JSON pointer.

    :raises UnreadableText: it is no YAML, or holds what JSON can't say.
    """
    try:
        loader = _Loader(text)
        try:
            documents: list[tuple[Any, Mapping[str, int]]] = []
            with uncollected():
                while loader.check_node():
                    reading = _Reading()
                    documents.append((reading.value(loader.get_node(), "", 0), reading.lines))
            return documents
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = (error.problem or error.context or "it can't be read").rstrip(".")
        line = mark.line + 1 if mark else 1
        if "\t" in "".join(text.splitlines()[line - 1 : line]):
            said = f"{said}; this line holds a tab, and YAML is indented by spaces"
        raise UnreadableText(f"This is no YAML: {said}.", line) from error
    except (yaml.YAMLError, RecursionError) as error:
        said = str(error).partition("\n")[0] or "it is nested too deep"
        raise UnreadableText(f"This is no YAML: {said}.", 1) from error


class _Reading:
    """Makes one document's nodes into values."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self._nodes = 0

    def value(self, node: yaml.Node, pointer: str, depth: int, line: int | None = None) -> Any:
        """Return what a node means.

        :param line: of the field's name, where the node is the value of one.
        """
        here = node.start_mark.line + 1
        self.lines[pointer] = line or here
        self._nodes += 1
        if self._nodes > MOST_NODES or depth > MAX_DEPTH:
            raise UnreadableText("This grows too large, by aliases or by its depth; write it flatter.", here)
        if isinstance(node, yaml.MappingNode):
            _require_tag(node, "map")
            return self._fields(node, pointer, depth)
        if isinstance(node, yaml.SequenceNode):
            _require_tag(node, "seq")
            return [self.value(item, f"{pointer}/{place}", depth + 1) for place, item in enumerate(node.value)]
        if not isinstance(node, yaml.ScalarNode):
            raise UnreadableText(f"The tag {node.tag} is not allowed in a definition.", here)
        return _scalar(node)

    def _fields(self, node: yaml.MappingNode, pointer: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise UnreadableText("A field's name must be a text.", line)
            name = str(key_node.value)
            if name == "<<" and not key_node.style:
                for value in self._merged(value_node, pointer, depth):
                    merged = {**value, **merged}
                continue
            if name in found:
                raise UnreadableText(f"The field {name!r} is here twice.", line)
            found[name] = self.value(value_node, f"{pointer}/{escaped(name)}", depth + 1, line)
        return {**merged, **found}

    def _merged(self, node: yaml.Node, pointer: str, depth: int) -> Iterator[dict[str, Any]]:
        """Yield the objects that ``<<`` puts under an object's own fields, which win."""
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(source, yaml.MappingNode):
                raise UnreadableText("What `<<` merges must be an object.", source.start_mark.line + 1)
            inner = _Reading()
            inner._nodes = self._nodes
            value = inner.value(source, pointer, depth + 1)
            self._nodes = inner._nodes
            for place, line in inner.lines.items():
                self.lines.setdefault(place, line)
            yield value


def _require_tag(node: yaml.Node, kind: str) -> None:
    if node.tag != _TAG + kind:
        raise UnreadableText(f"The tag {node.tag} is not allowed in a definition.", node.start_mark.line + 1)


def _scalar(node: yaml.ScalarNode) -> Any:
    text, line, quoted = str(node.value), node.start_mark.line + 1, bool(node.style)
    if node.tag == _UNSAID:
        return text if quoted else plain_value(text, line)
    if node.tag == f"{_TAG}str":
        return text
    implicit = _RESOLVER.resolve(yaml.ScalarNode, text, (not quoted, quoted))
    if quoted or node.tag != implicit:
        raise UnreadableText(f"The tag {node.tag} is not allowed in a definition.", line)
    return plain_value(text, line)


def plain_value(text: str, line: int = 1) -> Any:
    """Return what a plain scalar means in YAML 1.2.

    :raises UnreadableText: it is too large a number, an infinity or no number, which JSON can't say.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        if len(text) > _MOST_DIGITS:
            # Reading them takes time by the square of their number, which Python refuses from 4,300 on.
            raise UnreadableText(f"A number of {len(text)} characters is too large; write it as a text.", line)
        return int(text, 0 if text[:2] in ("0x", "0o") else 10)
    if _FLOAT.fullmatch(text):
        number = float(text)
        if math.isinf(number):
            raise UnreadableText(f"{text} is too large for a number.", line)
        return number
    if text.lower() in (".nan", ".inf", "-.inf", "+.inf"):
        raise UnreadableText(f"{text} is no JSON; leave it out or write a finite number.", line)
    if _NO_NUMBER.fullmatch(text):
        raise UnreadableText(
            f"{text} is no JSON number; write a finite one, or put it in quotes to make it a text.", line
        )
    return text


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and quotes what one YAML or the other would take for something else."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent the items of a list below its field, which is how people write them."""
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(f"{_TAG}str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)
_Dumper.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+.0123456789"))
_Dumper.add_implicit_resolver(f"{_TAG}float", _NO_NUMBER, list("NI-+"))
_Dumper.add_implicit_resolver(f"{_TAG}int", _INTEGER, list("-+0123456789"))


def write_yaml(document: Any) -> str:
    """Return a JSON value as YAML that reads as the same value under YAML 1.2 and, quoted where needed, 1.1."""
    text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=False)
    return str(text)
