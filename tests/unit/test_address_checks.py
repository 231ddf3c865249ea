"""Paths and URLs that no attempt would be allowed to use, as a save finds them in a definition."""

from __future__ import annotations

import time
from typing import Any

import pytest

from api.address_checks import address_problems
from orchestrator.config import Settings, load_settings

KEYS = {"SECRET_KEY": "s" * 32, "ADMIN_KEY": "a" * 32}
METADATA = "http://169.254.169.254/latest"


def pointers(document: dict[str, Any], settings: Settings | None = None) -> list[str]:
    return [problem.pointer for problem in address_problems(document, settings or load_settings(KEYS))]


def task(operator: str = "data_ingestion", **parameters: Any) -> dict[str, Any]:
    return {"name": "t", "operator": operator, "parameters": parameters}


def test_a_path_that_leads_upwards_is_found_in_groups_at_any_depth() -> None:
    bad, good = task(source_path="../../etc/passwd"), task(source_path="sales.csv")
    inner = {"name": "inner", "repeat": {"until": "x"}, "tasks": [good, bad]}
    outer = {"name": "outer", "map": {"over": [1]}, "tasks": [inner, bad]}
    assert pointers({"tasks": [good, outer, bad]}) == [
        "/tasks/2/parameters/source_path",
        "/tasks/1/tasks/1/parameters/source_path",
        "/tasks/1/tasks/0/tasks/1/parameters/source_path",
    ]


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        ({"file": "../../x"}, ["/file"]),
        ({"file": "examples:digits.parquet"}, []),
        ({"file": "artifact://sha256/1"}, []),
        ({"http": {"url": METADATA}}, ["/http/url"]),
        ({"http": {"url": "http://127.1/"}}, ["/http/url"]),
        ({"http": {"url": "https://example.org/jobs/7", "path": "a.b"}}, []),
        ({"http": {"url": "jobs/../../7"}, "connection": "jobs"}, ["/http/url"]),
        ({"http": {"url": "jobs/7"}, "connection": "jobs"}, []),
        ({"http": 5, "file": [1], "connection": {}}, []),
    ],
)
def test_what_is_waited_for_is_looked_at_too(parameters: dict[str, Any], found: list[str]) -> None:
    wait = task("wait_for", **parameters)
    assert pointers({"tasks": [wait]}) == [f"/tasks/0/parameters{place}" for place in found]
    assert pointers({"tasks": [task("of_somebody", **parameters)]}) == [], "those names mean nothing elsewhere"


def test_what_is_asked_for_lies_below_its_connection() -> None:
    settings = load_settings({**KEYS, "CONNECTIONS": '{"jobs": {"url": "https://example.org/jobs"}}'})
    for url, is_below in (("https://example.org/jobs/7", True), ("https://example.org/other", False)):
        shown = pointers({"tasks": [task("wait_for", connection="jobs", http={"url": url})]}, settings)
        assert bool(shown) is not is_below


@pytest.mark.parametrize(
    ("value", "is_refused"),
    [
        ("https://example.org/{{ item.id }}.json?day={{ params.day }}", False),
        ("https://{{ params.host }}/x", False),
        ("https://{{ params.a/b }}:8080/x", False),
        ("{{ params.url }}", False),
        ("in/{{ item }}/x.csv", False),
        ("../{{ item }}", True),
        ("https://{{ params.host }}/../x", True),
        (f"{METADATA}/{{{{ item }}}}", True),
        ("http://127.1/{{ item }}", True),
    ],
)
def test_what_a_template_stands_for_is_left_to_the_worker(value: str, is_refused: bool) -> None:
    for name, given in (("source_path", value), ("http", {"url": value})):
        one = task("wait_for" if name == "http" else "data_ingestion", **{name: given})
        assert bool(pointers({"tasks": [one]})) is is_refused


@pytest.mark.parametrize("document", [{}, {"tasks": 1}, {"tasks": [1, {"parameters": [1]}, {"tasks": {"a": 1}}]}])
def test_what_is_no_definition_is_left_to_others(document: dict[str, Any]) -> None:
    assert pointers(document) == []


@pytest.mark.parametrize("value", ["{" * 2**20, "{{a" * 2**18, "{{ a }}" * 2**17, "/" * 2**20, "." * 2**20])
def test_a_text_of_a_megabyte_is_looked_at_once(value: str) -> None:
    began = time.process_time()
    pointers({"tasks": [task(script_path=value, data_url=value)]})
    assert time.process_time() - began < 5.0
