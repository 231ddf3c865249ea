"""A resource's blueprint: typed decorators over flask-smorest's, the role an operation needs, its documented errors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from flask import request
from flask_smorest import Blueprint
from marshmallow import Schema

from api.bodies import StrictParser
from orchestrator.store.api_keys import Role

F = TypeVar("F", bound=Callable[..., Any])

ERRORS: Mapping[int, str] = {
    400: "The request can't be read.",
    401: "No valid API key.",
    403: "The key's role does not allow this.",
    404: "There is no such thing, or it is another tenant's.",
    409: "It contradicts the present state.",
    412: "If-Match names an older revision.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    422: "The request breaks a rule; `errors` says which and where.",
    429: "Too many requests of this key; wait for Retry-After seconds.",
    500: "A fault of ours.",
    503: "A store does not answer; wait for Retry-After seconds.",
}
EVERYWHERE = (400, 401, 403, 404, 429, 500, 503)
BODY_ERRORS = (413, 415, 422)


def response_name(code: int) -> str:
    """Return the name of the documented response to this error."""
    return f"Error{code}"


def needs(role: Role) -> Callable[[F], F]:
    """Declare the lowest role that may call the view; a view without it is closed to everybody."""

    def mark(view: F) -> F:
        view.required_role = role  # type: ignore[attr-defined]
        _note(view, access=role)
        return view

    return mark


def _note(view: Callable[..., Any], **notes: Any) -> None:
    """Add to what flask-smorest collects about a view for its documentation."""
    view._apidoc = {**getattr(view, "_apidoc", {}), **notes}  # type: ignore[attr-defined]  # noqa: SLF001


def accepts_basic(view: F) -> F:
    """Let browsers in: this view also takes the API key as the password of HTTP Basic."""
    view.accepts_basic = True  # type: ignore[attr-defined]
    return view


class Resource(Blueprint):  # type: ignore[misc]
    """One resource of the API."""

    ARGUMENTS_PARSER = StrictParser()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._prepare_doc_cbks.append(self._document_access)

    def query(self, schema: type[Schema]) -> Callable[[F], F]:
        """Take the query string, checked by the schema."""
        wrap: Callable[[F], F] = self.arguments(schema, location="query")
        return wrap

    def body(self, schema: type[Schema], *, example: Any = None) -> Callable[[F], F]:
        """Take a JSON body, checked by the schema."""
        wrap: Callable[[F], F] = self.arguments(schema, location="json", example=example)
        return wrap

    def optional_body(self, schema: type[Schema], *, example: Any = None) -> Callable[[F], F]:
        """Take a JSON body, checked by the schema; none at all is an empty object."""
        content = {"schema": schema, **({"example": example} if example is not None else {})}

        def wrap(view: F) -> F:
            @functools.wraps(view)
            def checked(resource: Any, **path: Any) -> Any:
                sent = request.get_data(cache=True)
                read: Any = (
                    self.ARGUMENTS_PARSER.parse(schema(), request, location="json") if sent else schema().load({})
                )
                return view(resource, read, **path)

            body = {"required": False, "content": {"application/json": content}}
            return cast("F", self.note(requestBody=body)(checked))

        return wrap

    def answers(
        self,
        status: int,
        schema: type[Schema] | None = None,
        *,
        description: str | None = None,
        headers: Mapping[str, Any] | None = None,
        content_type: str | None = None,
        example: Any = None,
    ) -> Callable[[F], F]:
        """Answer with this status and what the schema shows of the view's result."""
        wrap: Callable[[F], F] = self.response(
            status, schema, description=description, headers=headers, content_type=content_type, example=example
        )
        return wrap

    def also(
        self,
        status: int,
        schema: Any = None,
        *,
        description: str | None = None,
        content_type: str | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> Callable[[F], F]:
        """Document another answer that the view builds itself."""
        wrap: Callable[[F], F] = self.alt_response(
            status, schema=schema, description=description, content_type=content_type, headers=headers
        )
        return wrap

    def refuses(self, *codes: int) -> Callable[[F], F]:
        """Document further errors of the view."""

        def mark(view: F) -> F:
            _note(view, refusals=codes)
            return view

        return mark

    def note(self, **documentation: Any) -> Callable[[F], F]:
        """Add to the operation's documentation as it is."""
        wrap: Callable[[F], F] = self.doc(**documentation)
        return wrap

    @staticmethod
    def _document_access(doc: dict[str, Any], notes: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add the errors every guarded operation may answer, and the role it needs."""
        responses = doc.setdefault("responses", {})
        role: Role | None = notes.get("access")
        codes: set[int] = set(notes.get("refusals", ()))
        if role is not None:
            codes.update(EVERYWHERE)
            doc["x-required-role"] = role.word
        if "requestBody" in doc or "requestBody" in notes.get("manual_doc", {}):
            codes.update(BODY_ERRORS)
        if 422 in responses:
            codes.add(422)
        for code in sorted(codes):
            responses[code] = response_name(code)
        return doc
