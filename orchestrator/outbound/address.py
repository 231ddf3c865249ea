"""Decides which addresses a user-given URL may reach, and pins the one that was checked."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit, urlunsplit

from orchestrator.errors import ForbiddenAddress, Unreachable

Resolver = Callable[[str, int], Sequence[str]]
"""Host and port in, textual addresses out; raises ``OSError``."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_METADATA = frozenset({ipaddress.ip_address("168.63.129.16")})
"""Azure serves host metadata on an address that counts as global."""
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart; what is sent is built from these parts, so that no second parser can read it otherwise."""

    scheme: str
    host: str
    port: int
    path_and_query: str

    @property
    def origin(self) -> tuple[str, str, int]:
        """What credentials belong to."""
        return self.scheme, self.host, self.port

    @property
    def host_header(self) -> str:
        """The ``Host`` header: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL again, without fragment."""
        return f"{self.scheme}://{self.host_header}{self.path_and_query}"

    @property
    def shown(self) -> str:
        """The URL without its query, which may hold a key: for messages and logs."""
        return self.url.partition("?")[0]


def parse_target(url: str) -> Target:
    """Take an absolute ``http`` or ``https`` URL apart.

    :raises ForbiddenAddress: it is none, holds credentials, or is spelled in a way that parsers read differently.
    """
    if not url.isascii() or any(ord(character) <= 32 or ord(character) == 127 for character in url) or "\\" in url:
        raise ForbiddenAddress(
            f"{url[:200]!r} is no URL that may be called: encode spaces, control and non-ASCII characters."
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ForbiddenAddress(f"{url[:200]!r} is no URL: {error}.") from error
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ForbiddenAddress(f"{url[:200]!r} can't be called: only absolute http and https URLs are.")
    if "@" in parts.netloc:
        raise ForbiddenAddress("A URL with a user or password in it is refused: put credentials in a connection.")
    host = parts.hostname.rstrip(".")
    if not _is_host(host):
        raise ForbiddenAddress(f"{host[:200]!r} is neither a host name nor an address.")
    return Target(parts.scheme, host, port or _DEFAULT_PORTS[parts.scheme], _path_and_query(parts))


def _path_and_query(parts: SplitResult) -> str:
    return urlunsplit(("", "", parts.path or "/", parts.query, ""))


def _is_host(host: str) -> bool:
    if ":" in host:
        try:
            return "%" not in host and ipaddress.IPv6Address(host) is not None
        except ValueError:
            return False
    return len(host) <= 253 and all(_LABEL.fullmatch(label) for label in host.split("."))


def system_resolver(host: str, port: int) -> Sequence[str]:
    """Ask the system's resolver, once."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def checked_addresses(target: Target, resolve: Resolver, allowed_private_hosts: Collection[str]) -> Sequence[str]:
    """Resolve the host once and return its addresses, which the connection must then use.

    One forbidden address among several refuses the host: which of them is used would be chance.

    :raises ForbiddenAddress: the site does not allow it.
    :raises Unreachable: the name does not resolve.
    """
    try:
        addresses = resolve(target.host, target.port)
    except (OSError, UnicodeError) as error:
        raise Unreachable(f"The host {target.host} of {target.shown} can't be found ({error}).") from error
    if not addresses:
        raise Unreachable(f"The host {target.host} of {target.shown} has no address.")
    if is_allowed_private(target, allowed_private_hosts):
        return addresses
    forbidden = [address for address in addresses if not is_public(address)]
    if forbidden:
        raise ForbiddenAddress(
            f"{target.shown} leads to {forbidden[0]}, which is not a public address. If tasks may call it, add "
            f"{target.host}:{target.port} to ALLOWED_PRIVATE_HOSTS."
        )
    return addresses


def is_allowed_private(target: Target, allowed: Collection[str]) -> bool:
    """Say whether the site lists this host, or this host and port."""
    names = {entry.strip().lower() for entry in allowed}
    host = f"[{target.host}]" if ":" in target.host else target.host
    return bool(names & {target.host, host, f"{host}:{target.port}"})


def is_public(address: str) -> bool:
    """Say whether an address is one of the public internet, also behind the notations that wrap an IPv4 address."""
    try:
        found: _Address = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if "%" in address:
        return False
    wrapped = _wrapped(found)
    if wrapped is not None and not is_public(str(wrapped)):
        return False
    if isinstance(found, ipaddress.IPv6Address) and (found.ipv4_mapped is not None or found in _NAT64):
        return True  # the wrapped address has just been judged; is_global differs here between Python versions
    return found.is_global and not (found.is_multicast or found.is_reserved) and found not in _METADATA


def _wrapped(address: _Address) -> ipaddress.IPv4Address | None:
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo is not None:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour
