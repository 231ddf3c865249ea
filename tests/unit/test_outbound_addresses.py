"""Which addresses a user-given URL may reach, without any network."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.config import load_settings
from orchestrator.errors import ForbiddenAddress, Unreachable
from orchestrator.outbound import OutboundClient
from orchestrator.outbound.address import checked_addresses, is_public, parse_target
from orchestrator.outbound.response import Response, retry_after_seconds


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.1", "198.18.0.1", "224.0.0.1", "239.1.1.1",
        "240.0.0.1", "255.255.255.255", "168.63.129.16",
        "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "2002:7f00:1::", "2002:a00:1::",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2001:db8::1", "2001:0:4136:e378:8000:63bf:f5ff:fffe", "nonsense", "",
    ],
)  # fmt: skip
def test_an_address_that_is_not_of_the_public_internet_is_recognised(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_a_public_address_is_recognised(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/", "file:///etc/passwd", "gopher://x/", "//example.com/", "/path", "example.com", "", "http://",
        "http:///x", "http://user@example.com/", "http://user:pw@example.com/", "http://example.com@10.0.0.1/",
        "http://exa mple.com/", "http://example.com/a b", "http://example.com/\r\nHost: x",
        "http://example.com\\@10.0.0.1/",
        "http://exämple.com/", "http://example.com:99999/", "http://example.com:x/",
        "http://[::1%25eth0]/",
        "http://[::1/",
        "http://[example.com]/", "http://a..b/", "http://-x.com/", "http://" + "a" * 64 + ".com/",
        "javascript:alert(1)",
    ],
)  # fmt: skip
def test_a_url_that_parsers_could_read_differently_is_refused(url: str) -> None:
    with pytest.raises(ForbiddenAddress):
        parse_target(url)


@pytest.mark.parametrize(
    "url, resolved",
    [
        ("http://internal.example/", ["10.0.0.1"]),
        ("http://mixed.example/", ["8.8.8.8", "127.0.0.1"]),
        ("http://mapped.example/", ["::ffff:192.168.0.1"]),
        ("http://2130706433/", ["127.0.0.1"]),
        ("http://0x7f.1/", ["127.0.0.1"]),
        ("http://metadata.example/latest/meta-data/", ["169.254.169.254"]),
        ("http://[::1]:8080/", ["::1"]),
    ],
)
def test_a_host_with_any_private_address_is_refused(url: str, resolved: list[str]) -> None:
    with pytest.raises(ForbiddenAddress, match="ALLOWED_PRIVATE_HOSTS"):
        checked_addresses(parse_target(url), lambda _host, _port: resolved, ())


@pytest.mark.parametrize("allowed", ["registry", "REGISTRY", "registry:8000"])
def test_a_private_host_that_the_site_lists_is_allowed(allowed: str) -> None:
    found = checked_addresses(parse_target("http://registry:8000/x"), lambda _host, _port: ["10.0.0.1"], [allowed])
    assert found == ["10.0.0.1"]


@pytest.mark.parametrize("allowed", ["registry:8001", "other", "egistry", ""])
def test_another_port_or_host_than_the_listed_one_is_refused(allowed: str) -> None:
    with pytest.raises(ForbiddenAddress):
        checked_addresses(parse_target("http://registry:8000/x"), lambda _host, _port: ["10.0.0.1"], [allowed])


def test_the_registry_that_the_site_names_itself_may_be_private() -> None:
    client = OutboundClient.from_settings(load_settings({"MODEL_REGISTRY_URL": "http://registry:8000/api"}))
    assert client._allowed == {"registry:8000"}


def test_a_name_that_does_not_resolve_is_said_to_be_unreachable() -> None:
    def resolve(_host: str, _port: int) -> Sequence[str]:
        raise OSError("Name or service not known")

    with pytest.raises(Unreachable, match=r"gone\.example"):
        checked_addresses(parse_target("http://gone.example/?key=secret"), resolve, ())


def test_a_message_never_shows_the_query_of_a_url() -> None:
    assert parse_target("https://example.com:8443/a?key=secret#x").shown == "https://example.com:8443/a"


def test_retry_after_is_read_as_seconds_and_as_a_date() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    later = now + timedelta(seconds=90)
    assert retry_after_seconds("120", now) == 120
    assert retry_after_seconds(later.strftime("%a, %d %b %Y %H:%M:%S GMT"), now) == 90
    assert retry_after_seconds("Wed, 31 Dec 2025 00:00:00 GMT", now) == 0
    assert retry_after_seconds("soon", now) is None
    assert retry_after_seconds("²", now) is None
    assert retry_after_seconds(None, now) is None


def test_a_body_that_is_no_json_is_an_error_that_names_the_url() -> None:
    with pytest.raises(Unreachable, match="https://x/ answered 200"):
        Response(200, {}, b"<html>", "https://x/").json()
