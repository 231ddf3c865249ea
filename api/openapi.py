"""The OpenAPI document: ``python -m api.openapi`` writes ``docs/reference/openapi.json``, the same every time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from flask import Flask

from api.definition_schema import DEFINITION, TASK
from api.errors import ErrorSchema, RestApi
from api.resource import ERRORS, Resource, response_name
from api.resources import RESOURCES
from orchestrator import __version__

TITLE = "Pipeline Orchestrator"
VERSION = "3.0.3"
DESCRIPTION = """Pipelines over REST, placed by cpu, memory and GPU onto Celery workers.

Every request but `GET /healthz` carries an API key: `Authorization: Bearer <key>`. Keys have one of the roles viewer,
operator, author and admin; each may also do what the ones before it may, and `x-required-role` says what an operation
needs. Errors have one shape (`Error`). Lists are read page by page with `cursor`.
"""
REFERENCE = Path("docs/reference/openapi.json")


def config() -> dict[str, Any]:
    """Return the settings flask-smorest reads from the application."""
    return {
        "API_TITLE": TITLE,
        "API_VERSION": "v1",
        "OPENAPI_VERSION": VERSION,
        "API_SPEC_OPTIONS": {
            "info": {"description": DESCRIPTION, "license": {"name": "Apache-2.0"}, "x-release": __version__},
            "servers": [{"url": "/"}],
            "security": [{"bearer": []}],
            "components": {
                "securitySchemes": {
                    "bearer": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "An API key, from POST /api/v1/keys.",
                    }
                }
            },
        },
    }


def register(app: Flask, blueprints: list[Resource]) -> RestApi:
    """Register the resources with their documentation and return the API."""
    api = RestApi(app)
    api.spec.components.schema("TaskDefinition", TASK)
    api.spec.components.schema("PipelineDefinition", DEFINITION)
    for code, description in ERRORS.items():
        content = {"application/json": {"schema": ErrorSchema}}
        response: dict[str, Any] = {"description": description, "content": content}
        if code in (429, 503):
            response["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}}
        api.spec.components.response(response_name(code), response)
    for blueprint in blueprints:
        api.register_blueprint(blueprint)
    app.extensions["openapi"] = lambda: api.spec.to_dict()
    return api


def document() -> dict[str, Any]:
    """Return the document without starting anything: no store is asked."""
    app = Flask("api.openapi")
    app.config.update(config())
    document: dict[str, Any] = register(app, RESOURCES).spec.to_dict()
    return document


def text() -> str:
    """Return the document as it is kept in the repository."""
    return json.dumps(document(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> None:
    """Write the document to the path given, ``-`` for standard output."""
    target = arguments[0] if arguments else str(REFERENCE)
    if target == "-":
        sys.stdout.write(text())
        return
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
