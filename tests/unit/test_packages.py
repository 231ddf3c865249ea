"""The digest of a worker's environment."""

from __future__ import annotations

from collections.abc import Iterator
from email.message import Message
from types import SimpleNamespace

import pytest

from workers import packages


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    packages.environment_digest.cache_clear()
    yield
    packages.environment_digest.cache_clear()


def digest_with(monkeypatch: pytest.MonkeyPatch, *installed: tuple[str, str]) -> str:
    def package(name: str, version: str) -> SimpleNamespace:
        metadata = Message()
        metadata["Name"] = name
        return SimpleNamespace(metadata=metadata, version=version)

    packages.environment_digest.cache_clear()
    monkeypatch.setattr(packages, "distributions", lambda: [package(*one) for one in installed])
    return packages.environment_digest()


def test_it_is_the_same_whatever_the_order_and_spelling_of_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    one = digest_with(monkeypatch, ("NumPy", "2.0"), ("scikit_learn", "1.5"))
    assert one == digest_with(monkeypatch, ("scikit-learn", "1.5"), ("numpy", "2.0"))


def test_another_version_of_a_package_is_another_environment_and_one_of_ours_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = digest_with(monkeypatch, ("numpy", "2.0"), ("pipeline-orchestrator", "1.0"))
    assert one == digest_with(monkeypatch, ("numpy", "2.0"), ("pipeline-orchestrator", "1.1"))
    assert one != digest_with(monkeypatch, ("numpy", "2.1"), ("pipeline-orchestrator", "1.0"))
