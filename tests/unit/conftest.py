"""What several unit tests stand on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

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


@pytest.fixture
def examples_of_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one seed give the same examples in every order of tests.

    Hypothesis mixes in constants that it finds in the modules that are loaded by then: which those are, and every
    literal in them, would decide what a seed finds.
    """
    monkeypatch.setattr(providers, "_get_local_constants", Constants)
