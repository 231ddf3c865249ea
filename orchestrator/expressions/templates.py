"""Templates: ``{{ path }}`` inside the texts of a JSON value, resolved by us and not by a template engine.

A text that is one template becomes the value itself, of whatever type; inside a longer text a value becomes text
(lists and objects as JSON). ``\\{{`` is a literal ``{{``. Names of fields are never templates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from orchestrator.documents import escaped
from orchestrator.errors import ExpressionError, Problem, TemplateError
from orchestrator.expressions.paths import Lookup, Missing, Path, parse_path, path_text
from orchestrator.expressions.remembered import LONGEST, Remembered
from orchestrator.expressions.texts import AGAIN, ENTRY, LOOKED_UP, Texts

OPEN, CLOSE, LITERAL = "{{", "}}", "\\{{"
MAX_RESOLVED = 8 * 2**20
"""Characters of JSON that all templates of one value may put in."""
_READ_ANEW = 5
"""How often a character counts of a text that is too long for what was read from it to be remembered."""
_COPIED = 5
"""So many bits less than a character that is read counts one that is only copied."""
_SHOWN = 60
_NONE: frozenset[Path] = frozenset()

Piece = str | Path
"""Of a text: what stands there, or the path of what is to stand there."""


@Remembered
def pieces(text: str) -> tuple[Piece, ...]:
    """Take a text apart.

    :raises ExpressionError: a template is not closed, or holds no path.
    """
    found: list[Piece] = []
    literal: list[str] = []
    at = 0
    while (start := text.find(OPEN, at)) >= 0:
        if start > at and text[start - 1] == "\\":
            literal += (text[at : start - 1], OPEN)
            at = start + len(OPEN)
            continue
        end = text.find(CLOSE, start)
        if end < 0:
            raise ExpressionError(
                f"{_short(text[start:])} is not closed; a template ends with }}}}, and \\{{{{ is a literal {{{{."
            )
        literal.append(text[at:start])
        if before := "".join(literal):
            found.append(before)
        literal = []
        found.append(_path(text[start + len(OPEN) : end]))
        at = end + len(CLOSE)
    literal.append(text[at:])
    if rest := "".join(literal):
        found.append(rest)
    return tuple(found)


def whole_path(value: object) -> Path | None:
    """Return the path of a text that is one template; ``None`` for anything else, faulty ones too."""
    if not isinstance(value, str) or not value.startswith(OPEN):
        return None
    try:
        parts = pieces(value)
    except ExpressionError:
        return None
    return parts[0] if len(parts) == 1 and isinstance(parts[0], tuple) else None


def holds_template(value: object) -> bool:
    """Say whether :func:`resolve` would change the value, or refuse it."""
    if isinstance(value, str):
        return OPEN in value
    if isinstance(value, (dict, Mapping)):
        return any(map(holds_template, value.values()))
    return isinstance(value, (list, tuple)) and any(map(holds_template, value))


def references(value: object) -> frozenset[Path]:
    """Return the paths that the templates of a value read; faulty templates read nothing."""
    return frozenset(path for _, path in places(value)) if holds_template(value) else _NONE


def places(value: object, pointer: str = "") -> Iterator[tuple[str, Path]]:
    """Yield each template's path with the pointer of its text; faulty templates are left out."""
    for here, text in _texts(value, pointer):
        try:
            parts = pieces(text)
        except ExpressionError:
            continue
        for part in parts:
            if isinstance(part, tuple):
                yield here, part


def problems(value: object, pointer: str = "", fault: Callable[[Path], str | None] | None = None) -> list[Problem]:
    """Return what is wrong with the templates of a value, each with the pointer of its text.

    :param fault: says what is wrong with a path, as a sentence, or nothing.
    """
    found: list[Problem] = []
    for here, text in _texts(value, pointer):
        try:
            parts = pieces(text)
        except ExpressionError as error:
            found.append(Problem(here, str(error)))
            continue
        if fault is not None:
            found += [Problem(here, said) for part in parts if isinstance(part, tuple) and (said := fault(part))]
    return found


def resolve(value: Any, lookup: Lookup, pointer: str = "", most: int = MAX_RESOLVED, texts: Texts | None = None) -> Any:
    """Return the value with every template replaced by what its path leads to.

    :param pointer: where the value stands, for errors.
    :param most: characters of JSON that templates may put in altogether.
    :param texts: is charged for all that is read, and remembers the texts.
    :raises TemplateError: a path leads nowhere, a template can't be read, too much would come in, or it lies too deep.
    """
    try:
        return _Filling(lookup, most, texts).filled(value, pointer)
    except RecursionError as error:
        raise _too_deep(pointer) from error


def resolve_text(text: str, lookup: Lookup, pointer: str, longest: int, texts: Texts | None = None) -> str | None:
    """Return a text with its templates replaced; ``None``: it is one template, and what it leads to is null.

    One that is longer than ``longest`` characters is put together only as far as to be seen to be.

    :raises TemplateError: a path leads nowhere, a template can't be read, or what is read lies too deep.
    """
    try:
        return _Filling(lookup, longest, texts).start_of(text, pointer, longest + 1)
    except RecursionError as error:
        raise _too_deep(pointer) from error


class _Filling:
    """One resolution: what is looked up is looked up once, and what comes in is counted."""

    def __init__(self, lookup: Lookup, most: int, texts: Texts | None) -> None:
        self._lookup = lookup
        self._most = most
        self._left = most
        self._texts = Texts() if texts is None else texts
        self._known: dict[Path, Any] = {}

    def filled(self, value: Any, pointer: str) -> Any:
        if isinstance(value, str):
            return self._text(value, pointer) if OPEN in value else value
        if isinstance(value, Mapping):
            self._texts.read += ENTRY * len(value)
            return {name: self.filled(item, f"{pointer}/{escaped(name)}") for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            self._texts.read += ENTRY * len(value)
            return [self.filled(item, f"{pointer}/{at}") for at, item in enumerate(value)]
        return value

    def _text(self, text: str, pointer: str) -> Any:
        parts = self._pieces(text, pointer)
        if len(parts) == 1 and isinstance(parts[0], tuple):
            return self._put_in(parts[0], pointer)[0]
        found = "".join(part if isinstance(part, str) else self._put_in(part, pointer)[1] for part in parts)
        self._texts.read += len(found) >> _COPIED
        return found

    def start_of(self, text: str, pointer: str, length: int) -> str | None:
        found: list[str] = []
        left = length
        parts = self._pieces(text, pointer)
        for part in parts:
            piece = part
            if not isinstance(piece, str):
                value = self._value(piece, pointer)
                if value is None and len(parts) == 1:
                    return None
                piece = self._texts.start_of(value, left)
            found.append(piece[:left])
            left -= len(piece)
            if left <= 0:
                break
        return "".join(found)

    def _pieces(self, text: str, pointer: str) -> tuple[Piece, ...]:
        if len(text) > LONGEST:
            self._texts.read += _READ_ANEW * len(text)
        try:
            return pieces(text)
        except ExpressionError as error:
            raise TemplateError(str(error), pointer) from error

    def _value(self, path: Path, pointer: str) -> Any:
        self._texts.read += AGAIN
        if path not in self._known:
            self._texts.read += LOOKED_UP
            try:
                self._known[path] = self._lookup(path)
            except Missing as error:
                raise TemplateError(f"There is no {path_text(path)} for {pointer or '/'}: {error}.", pointer) from error
        return self._known[path]

    def _put_in(self, path: Path, pointer: str) -> tuple[Any, str]:
        value = self._value(path, pointer)
        text = self._texts.of(value, self._left)
        if text is None:
            raise TemplateError(
                f"The templates put in more than {self._most} characters of JSON, the last of them {path_text(path)} "
                f"at {pointer or '/'}; pass a file's URI instead.",
                pointer,
            )
        self._left -= len(text)
        return value, text


_MAY_HOLD = (str, dict, list, tuple, Mapping)


def _texts(value: object, pointer: str) -> Iterator[tuple[str, str]]:
    """Yield each text that may hold a template, with its pointer."""
    if isinstance(value, str):
        if OPEN in value:
            yield pointer, value
    elif isinstance(value, (dict, Mapping)):
        for name, item in value.items():
            if isinstance(item, _MAY_HOLD):
                yield from _texts(item, f"{pointer}/{escaped(name)}")
    elif isinstance(value, (list, tuple)):
        for at, item in enumerate(value):
            if isinstance(item, _MAY_HOLD):
                yield from _texts(item, f"{pointer}/{at}")


def _path(inside: str) -> Path:
    written = inside.strip()
    if not written:
        raise ExpressionError("{{ }} holds nothing; write a path as in {{ params.x }}.")
    try:
        return parse_path(written)
    except ExpressionError as error:
        raise ExpressionError(f"{error} A literal {{{{ is written \\{{{{.") from error


def _too_deep(pointer: str) -> TemplateError:
    message = f"What the templates at {pointer or '/'} put in is nested too deep; flatten it, or pass a file's URI."
    return TemplateError(message, pointer)


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
