"""What lies below a connection's URL, in every spelling by which a path could get out of it."""

from __future__ import annotations

import pytest

from orchestrator.errors import ForbiddenAddress
from orchestrator.reach import is_below

API = "https://user:secret@crm.example/api/v1/"


@pytest.mark.parametrize(
    "url, top",
    [
        ("https://crm.example/api/v1", API),
        ("https://crm.example/api/v1/customers?page=../x", API),
        ("https://CRM.example:443/api/v1/a/b", API),
        ("https://crm.example/api/v1/100%25/caf%C3%A9%2520noir", API),
        ("https://crm.example/anything", "https://crm.example"),
        ("s3://lake/in/x.csv", "s3://lake/in"),
        ("s3://lake/in/x.csv", "s3://lake"),
    ],
)
def test_what_is_at_the_top_or_below_it_is_inside(url: str, top: str) -> None:
    assert is_below(url, top)


@pytest.mark.parametrize(
    "url, top",
    [
        ("https://attacker.example/api/v1/x", API),
        ("https://crm.example.attacker.example/api/v1/x", API),
        ("https://crm.example:8443/api/v1/x", API),
        ("http://crm.example/api/v1/x", API),
        ("https://crm.example/api/v10", API),
        ("https://crm.example/admin", API),
        ("https://crm.example/api/v1/../../admin", API),
        ("https://crm.example/api/v1/%2e%2E/admin", API),
        ("https://crm.example/api/v1/%252e%252e%252fadmin", API),
        ("https://crm.example/api/v1/%25252e%25252e/admin", API),
        ("https://crm.example/api/v1/%2525252525252541", API),
        ("https://crm.example/api/v1/.%0a./admin", API),
        ("https://crm.example/api/v1/.%2509./admin", API),
        ("https://crm.example/api/v1/a%00b", API),
        ("s3://lake/in/.%7f./x.csv", "s3://lake/in"),
        ("https://crm.example/api/v1/..%5cadmin", API),
        ("https://crm.example/api/v1/..;x=1/admin", API),
        ("https://crm.example/API/v1/x", API),
        ("s3://other/in/x.csv", "s3://lake/in"),
        ("s3://lake/inner/x.csv", "s3://lake/in"),
        ("s3://lake/in/../x.csv", "s3://lake/in"),
        ("s3://lake/x", API),
        ("s3://[lake/x", "s3://lake"),
        ("https://crm.example/x", "https://[broken"),
        ("file:///etc/passwd", "file:///etc"),
        ("postgresql://h/d", "postgresql://h/d"),
        ("data.csv", "s3://lake"),
    ],
)
def test_everything_else_is_outside(url: str, top: str) -> None:
    assert not is_below(url, top)


def test_a_url_that_may_not_be_called_is_told() -> None:
    with pytest.raises(ForbiddenAddress, match="credentials in a connection"):
        is_below("https://user@crm.example/api/v1", API)


def test_a_fault_in_the_sites_own_url_is_not_told() -> None:
    assert not is_below("https://crm.example/x", "https://-bad-/api?key=secret")
