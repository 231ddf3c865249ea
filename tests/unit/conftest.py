"""What several unit tests stand on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.client import Client
from tests.unit.played_api import Answer, Play, PlayedApi


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    clients: list[Client] = []
    monkeypatch.setattr("orchestrator.client.time.sleep", lambda seconds: None)

    def make(*answers: Answer | BaseException) -> tuple[Client, PlayedApi]:
        api = PlayedApi(*answers)
        client = Client("http://api.test/", "the key")
        client._session.mount("http://", api)
        clients.append(client)
        monkeypatch.setattr("orchestrator.cli.connection.connect", lambda: client)
        return client, api

    yield make
    for client in clients:
        client.close()
