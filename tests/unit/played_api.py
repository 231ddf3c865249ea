"""An API that is played from a list of answers, behind the real client."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import requests
from requests.adapters import BaseAdapter

from orchestrator.client import Client

Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]


class PlayedApi(BaseAdapter):
    """Answers requests from a list, in order; the last answer is repeated.

    Bytes are sent as they are, the rest as JSON.
    """

    def __init__(self, *answers: Answer | BaseException) -> None:
        super().__init__()
        self.answers = list(answers)
        self.requests: list[requests.PreparedRequest] = []

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        response = requests.Response()
        response.status_code = answer[0]
        response.url = str(request.url)
        body = answer[1] if isinstance(answer[1], bytes) else json.dumps(answer[1]).encode()
        response.raw = io.BytesIO(body)
        response.headers.update(answer[2] if len(answer) == 3 else {})
        return response

    def close(self) -> None:
        pass

    def bodies(self) -> list[Any]:
        """Return the JSON that was sent with each request."""
        return [json.loads(request.body) if request.body else None for request in self.requests]

    def sent(self) -> list[str]:
        """Return method and path of each request."""
        return [f"{request.method} {request.path_url}" for request in self.requests]


Play = Callable[..., tuple[Client, PlayedApi]]
