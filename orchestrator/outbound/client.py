"""Sends one request at a time: checked address, pinned connection, bounded answer, polite retries."""

from __future__ import annotations

import json as json_module
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlencode, urljoin, urlsplit

from orchestrator import __version__
from orchestrator.config import Settings
from orchestrator.errors import ForbiddenAddress, TooLarge, Unreachable
from orchestrator.outbound.address import Resolver, Target, checked_addresses, parse_target, system_resolver
from orchestrator.outbound.response import Response

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, HTTPConnectionPool

MAX_REDIRECTS = 5
DEFAULT_MAX_BYTES = 64 * 2**20
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
RETRIED_STATUSES = frozenset({429, 502, 503, 504})
LONGEST_WAIT = 30.0
"""Longer waits are the scheduler's: the answer is returned and its ``retry_after`` tells."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_OURS = frozenset({"connection", "content-length", "host", "transfer-encoding"})
"""Headers that say where a request goes and where it ends: another ``Host`` would carry credentials to another site."""
_KEPT_ACROSS_ORIGINS = frozenset({"accept", "accept-language", "content-type", "user-agent"})


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    target: Target
    headers: Mapping[str, str]
    body: bytes | None
    max_bytes: int
    timeout: float
    into: IO[bytes] | None


class OutboundClient:
    """Calls URLs that users gave.

    - Only ``http`` and ``https``; the host is resolved once, every address must be public (or the host listed in
      ``ALLOWED_PRIVATE_HOSTS``), and the connection goes to exactly that address: a name that answers otherwise the
      second time changes nothing.
    - Redirects are followed at most 5 times, each checked anew; headers of the caller don't go to another origin.
    - Proxies of the environment are not used: they would resolve the name again.
    """

    def __init__(
        self,
        allowed_private_hosts: Collection[str] = (),
        *,
        retries: int = 3,
        resolve: Resolver = system_resolver,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._allowed = frozenset(allowed_private_hosts)
        self._retries = retries
        self._resolve = resolve
        self._sleep = sleep

    @classmethod
    def from_settings(cls, settings: Settings) -> OutboundClient:
        """Allow what the site lists, and the registry that it names itself."""
        registry = urlsplit(settings.model_registry_url)
        own = [registry.netloc.lower()] if registry.netloc else []
        return cls([*settings.allowed_private_hosts, *own])

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        body: bytes | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        timeout: float = 30.0,
        idempotent: bool | None = None,
        into: IO[bytes] | None = None,
    ) -> Response:
        """Send a request and return the answer, whatever its status.

        :param headers: without those that are the client's own business, such as ``Host``; these are left out.
        :param params: added to the query.
        :param json: sent as the body.
        :param max_bytes: most bytes of the decoded answer.
        :param timeout: seconds for connecting, for each wait for bytes, and (×10) for the whole answer.
        :param idempotent: whether it may be sent again after an error; by default the method decides.
        :param into: a file open for writing that takes the content of a 2xx answer in place of ``body``.
        :raises ForbiddenAddress: the URL, or one it redirects to, may not be called.
        :raises Unreachable: no answer after all tries.
        :raises TooLarge: the answer has more than ``max_bytes``.
        """
        sent = {name: value for name, value in (headers or {}).items() if name.lower() not in _OURS}
        if json is not None:
            body = json_module.dumps(json, allow_nan=False).encode()
            sent.setdefault("Content-Type", "application/json")
        if params:
            url += ("&" if "?" in url else "?") + urlencode(dict(params), doseq=True)
        request = _Request(method.upper(), parse_target(url), sent, body, max_bytes, timeout, into)
        may_repeat = request.method in IDEMPOTENT if idempotent is None else idempotent
        return self._with_retries(request, self._retries if may_repeat else 0)

    def _with_retries(self, request: _Request, retries: int) -> Response:
        for attempt in range(retries + 1):
            wait = min(LONGEST_WAIT, 0.5 * 2**attempt * random.uniform(0.75, 1.25))
            try:
                response = self._follow(request)
            except Unreachable:
                if attempt == retries:
                    raise
            else:
                if response.status not in RETRIED_STATUSES or attempt == retries:
                    return response
                asked = response.retry_after
                if asked is not None and asked > LONGEST_WAIT:
                    return response
                wait = wait if asked is None else asked
            self._sleep(wait)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _follow(self, request: _Request) -> Response:
        for _ in range(MAX_REDIRECTS + 1):
            response = self._send(request)
            location = response.headers.get("location")
            if response.status not in _REDIRECTS or not location:
                return response
            request = _redirected(request, response.status, location)
        raise ForbiddenAddress(f"{request.target.shown} redirects more than {MAX_REDIRECTS} times; give its final URL.")

    def _send(self, request: _Request) -> Response:
        addresses = checked_addresses(request.target, self._resolve, self._allowed)
        with _translated(request.target), _opened(request, addresses) as answer:
            headers = {name.lower(): value for name, value in answer.headers.items()}
            if request.into is None or not 200 <= answer.status < 300:
                chunks = list(_chunks(request, answer))
                body, size = b"".join(chunks), sum(map(len, chunks))
            else:
                body, size = b"", _store(request.into, _chunks(request, answer))
            return Response(answer.status, headers, body, request.target.shown, size)


def _redirected(request: _Request, status: int, location: str) -> _Request:
    target = parse_target(urljoin(request.target.url, location))
    if request.target.scheme == "https" and target.scheme == "http":
        raise ForbiddenAddress(f"{request.target.shown} redirects from https to http ({target.shown}); refused.")
    headers = request.headers
    if target.origin != request.target.origin:
        headers = {name: value for name, value in headers.items() if name.lower() in _KEPT_ACROSS_ORIGINS}
    if status in (301, 302, 303) and request.method not in ("GET", "HEAD"):
        headers = {name: value for name, value in headers.items() if name.lower() != "content-type"}
        return replace(request, method="GET", target=target, headers=headers, body=None)
    return replace(request, target=target, headers=headers)


@contextmanager
def _opened(request: _Request, addresses: Sequence[str]) -> Iterator[BaseHTTPResponse]:
    """Send to the first address that accepts a connection; the certificate is that of the host all the same."""
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

    headers = {
        "User-Agent": f"pipeline-orchestrator/{__version__}",
        "Accept": "*/*",
        "Accept-Encoding": "gzip",
        **request.headers,
        "Host": request.target.host_header,
    }
    for index, address in enumerate(addresses):
        pool = _pool(request.target, address)
        try:
            answer = pool.urlopen(
                request.method,
                request.target.path_and_query,
                body=request.body,
                headers=headers,
                retries=False,
                redirect=False,
                assert_same_host=False,
                timeout=request.timeout,
                preload_content=False,
            )
        except (NewConnectionError, ConnectTimeoutError):
            pool.close()
            if index + 1 == len(addresses):
                raise
            continue
        try:
            yield answer
        finally:
            answer.close()
            pool.close()
        return


def _pool(target: Target, address: str) -> HTTPConnectionPool:
    import urllib3

    if target.scheme == "http":
        return urllib3.HTTPConnectionPool(address, target.port)
    import certifi

    return urllib3.HTTPSConnectionPool(
        address,
        target.port,
        cert_reqs="CERT_REQUIRED",
        ca_certs=certifi.where(),
        assert_hostname=target.host,
        server_hostname=target.host,
    )


def _chunks(request: _Request, answer: BaseHTTPResponse) -> Iterator[bytes]:
    """Yield what arrives, as it arrives: a peer that sends a byte now and then meets the deadline, not a timeout."""
    deadline = time.monotonic() + 10 * request.timeout
    size = 0
    while chunk := answer.read1(1 << 16, decode_content=True):
        size += len(chunk)
        if size > request.max_bytes:
            raise TooLarge(f"{request.target.shown} answered with more than the {request.max_bytes:,} bytes allowed.")
        if time.monotonic() > deadline:
            raise Unreachable(f"{request.target.shown} did not finish its answer in {10 * request.timeout:.0f} s.")
        yield chunk


def _store(into: IO[bytes], chunks: Iterator[bytes]) -> int:
    """Write from the start of the file: an earlier try may have left something."""
    into.seek(0)
    into.truncate()
    size = 0
    for chunk in chunks:
        size += into.write(chunk)
    into.flush()
    return size


@contextmanager
def _translated(target: Target) -> Iterator[None]:
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (HTTPError, OSError, ValueError) as error:
        raise Unreachable(f"{target.shown} did not answer: {type(error).__name__}: {error}"[:500]) from error
