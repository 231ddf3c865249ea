"""Definitions as people keep them: JSON and YAML files and folders of them, and where in a file a problem is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigurationError, Problem, UnreadableText
from orchestrator.json_text import read_json
from orchestrator.yaml_text import read_yaml

SUFFIXES = (".json", ".yaml", ".yml")
STANDARD_INPUT = "-"
DEFINITION = "a definition is an object with name and tasks"


@dataclass(frozen=True, slots=True)
class WrittenDocument:
    """One object as it stands in a file."""

    source: str
    """The file, or ``standard input``."""
    value: Mapping[str, Any]
    lines: Mapping[str, int]
    """Where each value begins, by JSON pointer."""

    @property
    def name(self) -> str:
        """The name it gives itself, or nothing."""
        name = self.value.get("name")
        return name if isinstance(name, str) else ""

    def place(self, pointer: str = "") -> str:
        """Return ``file:line`` of what the pointer names, or of the nearest thing around it that is there."""
        while pointer not in self.lines and pointer:
            pointer = pointer.rpartition("/")[0]
        return f"{self.source}:{self.lines.get(pointer, 1)}"

    def told(self, problem: Problem) -> str:
        """Return a problem of it as one line: place, pointer, sentence."""
        return f"{self.place(problem.pointer)}: {problem.pointer or '/'}: {problem.message}"


def read_documents(text: str, source: str, wanted: str = DEFINITION) -> list[WrittenDocument]:
    """Return the objects in a JSON text, or in the documents of a YAML text; empty documents are passed over.

    :param wanted: the end of the sentence that says what is missing where there is no object.
    :raises ConfigurationError: it is neither, or holds something else; the message names the line.
    """
    try:
        found = _read(text, source)
    except UnreadableText as error:
        raise ConfigurationError(f"{source}{f':{error.line}' if error.line else ''}: {error}") from error
    documents = []
    for value, lines in found:
        if value is None:
            continue
        if not isinstance(value, dict):
            place = f"{source}:{lines.get('', 1)}"
            raise ConfigurationError(f"{place}: This holds no object; {wanted}.")
        documents.append(WrittenDocument(source, value, lines))
    if not documents:
        raise ConfigurationError(f"{source}: This holds no object; {wanted}.")
    return documents


def _read(text: str, source: str) -> list[tuple[Any, Mapping[str, int]]]:
    if not source.endswith(".json") and not text.lstrip().startswith(("{", "[")):
        return read_yaml(text)
    try:
        return [read_json(text)]
    except UnreadableText:
        if source.endswith(".json"):
            raise
        try:
            return read_yaml(text)  # which may begin with a brace too
        except UnreadableText:
            pass
        raise


def read_files(
    paths: Iterable[str], standard_input: Iterable[bytes] = (), wanted: str = DEFINITION
) -> tuple[list[WrittenDocument], list[str]]:
    """Return what the files hold, and a line for each file that can't be read; a folder stands for the files below it.

    :param standard_input: what ``-`` stands for.
    :param wanted: as of :func:`read_documents`.
    """
    documents: list[WrittenDocument] = []
    problems: list[str] = []
    for path in paths:
        try:
            for source, content in _contents(path, standard_input):
                try:
                    documents += read_documents(content.decode("utf-8"), source, wanted)
                except UnicodeDecodeError:
                    problems.append(f"{source}: This is no text in UTF-8.")
                except ConfigurationError as error:
                    problems.append(str(error))
        except OSError as error:
            problems.append(f"{path}: It can't be read: {error.strerror or error}.")
        except ConfigurationError as error:
            problems.append(str(error))
    return documents, problems


def _contents(path: str, standard_input: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    if path == STANDARD_INPUT:
        yield "standard input", b"".join(standard_input)
        return
    files = [Path(path)]
    if files[0].is_dir():
        files = sorted(file for file in files[0].rglob("*") if file.suffix in SUFFIXES and _is_shown(file, files[0]))
        if not files:
            raise ConfigurationError(f"{path}: There is no {', '.join(SUFFIXES)} file in this folder.")
    for file in files:
        yield str(file), file.read_bytes()


def _is_shown(file: Path, folder: Path) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
