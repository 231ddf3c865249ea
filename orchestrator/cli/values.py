"""Values that are given on the command line or in a file: run parameters, answers to an approval, outputs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import click

from orchestrator.definition_text import read_files

PARAMS = "A run parameter; VALUE may be JSON: 5 is a number, '\"5\"' a text."


def params_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``-p KEY=VALUE`` and ``--params FILE`` to a command, as ``params`` and ``params_file``."""
    pair = click.option("--param", "-p", "params", multiple=True, metavar="KEY=VALUE", help=PARAMS)
    file = click.option(
        "--params", "params_file", metavar="FILE", help="A JSON or YAML file of them (- for standard input)."
    )
    return pair(file(command))


def given_parameters(pairs: Iterable[str], file: str | None) -> dict[str, Any]:
    """Return the parameters of a file, with the pairs put over them."""
    given = read_object(file, "parameters are an object of names and values") if file else {}
    return {**given, **parse_pairs(pairs)}


def read_object(path: str, wanted: str) -> dict[str, Any]:
    """Return the one object that a JSON or YAML file holds.

    :param wanted: the end of the sentence that refuses anything else: what the file is for.
    :raises click.ClickException: it holds none, or several.
    """
    documents, problems = read_files([path], sys.stdin.buffer, wanted)
    if problems:
        raise click.ClickException("\n".join(problems))
    if len(documents) != 1:
        raise click.ClickException(f"{path} holds {len(documents)} documents; one is asked for.")
    return dict(documents[0].value)


def parse_pairs(pairs: Iterable[str], hint: str = "--param") -> dict[str, Any]:
    """Return an object from ``key=value``; a value that is JSON is taken as such, any other as text.

    :raises click.BadParameter: a pair has no ``=``.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE.", param_hint=hint)
        found[key] = parse_value(text)
    return found


def parse_value(text: str) -> Any:
    """Return what a text is as JSON, else the text."""
    try:
        return json.loads(text, parse_constant=_no_json)
    except ValueError:
        return text


def _no_json(word: str) -> NoReturn:
    raise ValueError(word)
