"""The documentation page: Swagger UI from an installed package, served offline, and the OpenAPI document.

Only liveness is public, and a browser can't send a bearer key for a page: these addresses also take the key as the
password of HTTP Basic, which browsers ask for. The API itself does not, so no page elsewhere can act with it.
"""

from __future__ import annotations

import functools
import importlib.resources
from pathlib import Path

from flask import Response, current_app, jsonify, send_file
from flask.views import MethodView
from werkzeug.exceptions import NotFound

from api.resource import Resource, accepts_basic, needs
from orchestrator.store.api_keys import Role

blueprint = Resource("docs", __name__, description="This documentation.")

ASSETS = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-16x16.png", "favicon-32x32.png")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Pipeline Orchestrator API</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png" sizes="32x32">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START = """window.addEventListener("load", function () {
  window.ui = SwaggerUIBundle({
    url: window.location.origin + "/openapi.json",  // a page address with a password in it is no base to fetch from
    dom_id: "#swagger-ui",
    deepLinking: true,
    validatorUrl: null,
    persistAuthorization: false,
    presets: [SwaggerUIBundle.presets.apis],
  });
});
"""


@blueprint.route("/docs")
class Docs(MethodView):
    @needs(Role.VIEWER)
    @accepts_basic
    @blueprint.also(200, {"type": "string"}, content_type="text/html", description="Swagger UI.")
    def get(self) -> Response:
        """Show this documentation in a browser."""
        response = Response(_PAGE, mimetype="text/html")
        response.headers["Content-Security-Policy"] = _POLICY
        return response


@blueprint.route("/docs/<string:asset>")
class Asset(MethodView):
    @needs(Role.VIEWER)
    @accepts_basic
    @blueprint.also(200, {"type": "string"}, content_type="text/javascript", description="A file of the page.")
    def get(self, asset: str) -> Response:
        """Get a file of the documentation page."""
        if asset == "start.js":
            return Response(_START, mimetype="text/javascript")
        if asset not in ASSETS:
            raise NotFound("The documentation page has no such file.")
        response = send_file(_folder() / asset, conditional=True, max_age=86_400)
        response.cache_control.private = True
        return response


@blueprint.route("/openapi.json")
class OpenApi(MethodView):
    @needs(Role.VIEWER)
    @accepts_basic
    @blueprint.also(200, {"type": "object"}, content_type="application/json", description="OpenAPI 3.0.3.")
    def get(self) -> Response:
        """Get this documentation as an OpenAPI document."""
        return jsonify(current_app.extensions["openapi"]())


@functools.cache
def _folder() -> Path:
    """Return the one folder of the package that holds Swagger UI's files; its name has the version."""
    vendor = Path(str(importlib.resources.files("swagger_ui_bundle"))) / "vendor"
    return next(folder for folder in sorted(vendor.iterdir(), reverse=True) if (folder / ASSETS[0]).is_file())
