"""The guard before every request: a key, a role that suffices, no more requests than allowed; closed by default."""

from __future__ import annotations

import ipaddress
import math
from typing import Any, cast

from flask import Flask, current_app, g, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import BadRequest, Forbidden, TooManyRequests, Unauthorized

from api.bodies import storable
from api.keyring import Caller
from api.services import services
from orchestrator.store.api_keys import Role

PUBLIC_ENDPOINTS = frozenset({"liveness.Liveness"})
"""All that may be asked without a key: whether the process lives."""


def install(app: Flask) -> None:
    """Put the guard before every request."""
    app.before_request(_guard)


def caller() -> Caller:
    """Return who sends this request."""
    return cast("Caller", g.caller)


def required_role(app: Flask, endpoint: str, method: str) -> Role | None:
    """Return the lowest role that may call this; ``None`` when the view declares none, and so is closed to all."""
    view = _view(app, endpoint, method)
    role: Role | None = getattr(view, "required_role", None)
    return role


def _guard() -> None:
    words = [request.path, *(part for pair in request.args.items(multi=True) for part in pair)]
    if not all(storable(word) for word in words):
        raise BadRequest("The address holds a character that can't be stored.")
    if request.endpoint in PUBLIC_ENDPOINTS and request.routing_exception is None:
        return
    g.caller = _authenticate()
    _refuse(services().throttle.wait(g.caller.key_id), "This key sends more requests than it may; slow down.")
    if request.endpoint is None or request.routing_exception is not None:
        return
    needed = required_role(current_app, request.endpoint, request.method)
    if needed is None or g.caller.role < needed:
        wanted = needed.word if needed is not None else "no"
        raise Forbidden(f"This needs the role {wanted}; key {g.caller.name!r} has {g.caller.role.word}.")


def _refuse(wait: float, why: str) -> None:
    if wait > 0:
        raise TooManyRequests(why, retry_after=max(1, math.ceil(wait)))


def _address() -> str:
    """Return whom guesses are counted against: the peer, of IPv6 its network, of which anybody has all addresses."""
    given = request.remote_addr or ""
    try:
        peer = ipaddress.ip_address(given.partition("%")[0])
    except ValueError:
        return given
    return given if peer.version == 4 else str(ipaddress.ip_network((peer, 64), strict=False))


def _authenticate() -> Caller:
    # Unknown addresses ask for a key too: who has none can't find out what exists.
    view = _view(current_app, request.endpoint, request.method) if request.endpoint else None
    basic = bool(getattr(view, "accepts_basic", False))
    given = request.authorization
    key = ""
    if given is not None and given.type == "bearer":
        key = given.token or ""
    elif given is not None and given.type == "basic" and basic:
        key = given.password or ""
    # A key that was good a moment ago is no guess: others behind the same address must not lock its owner out.
    address, guesses = _address(), services().guesses
    if not services().keyring.remembers(key):
        _refuse(guesses.wait(address, take=False), "Too many requests without a valid key came from this address.")
    found = services().keyring.identify(key, stale=request.path.startswith("/monitoring/health"))
    if found is None:
        guesses.wait(address)
        raise Unauthorized(
            "Send a valid API key: `Authorization: Bearer <key>`"
            + (", or the key as the password of HTTP Basic." if basic else "."),
            www_authenticate=WWWAuthenticate("basic" if basic else "bearer", {"realm": "orchestrator"}),
        )
    return found


def _view(app: Flask, endpoint: str | None, method: str) -> Any:
    function = app.view_functions.get(endpoint or "")
    owner = getattr(function, "view_class", None)
    if owner is None:
        return function
    return getattr(owner, "get" if method == "HEAD" else method.lower(), None)
