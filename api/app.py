"""Builds the application: settings in, a WSGI application out; nothing is connected before the first request."""

from __future__ import annotations

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from api import access, around
from api.attempt_log import LogGaps
from api.backlog import Backlog
from api.cursors import CursorSeal
from api.gate import Gate
from api.hangs import Hangs
from api.http_metrics import HttpMetrics
from api.json_answers import JSONAnswers
from api.keyring import Keyring
from api.live import LiveWire
from api.openapi import config, register
from api.overload import InTime
from api.resources import RESOURCES
from api.services import EXTENSION, Services
from api.sse import StreamSlots
from api.throttle import Throttle
from api.versions import VersionShelf
from orchestrator.artifacts import open_artifacts
from orchestrator.artifacts.presence import Presence
from orchestrator.circuit import Circuit
from orchestrator.compile import Site
from orchestrator.config import Settings
from orchestrator.logs import configure_logs
from orchestrator.registry import load_operators
from orchestrator.store.engine import Limits, create_store_engine

LIMITS = Limits(connect=1.3, pool=0.5, statement=1.4, answer=1.6, lock=1.0)
"""With what a request may wait in all (``around.ALLOWANCE``) every answer comes within 2 s (I8, I15)."""
_SILENCE_HOLD = 1.0
"""Seconds between two looks at a database that was silent; all other requests are 503 at once."""
_MOST_STREAMS = 32
"""Half of the 64 threads the server is started with."""


def create_app(settings: Settings, *, hang_limit: float | None = None) -> Flask:
    """Return the application.

    :param hang_limit: seconds after which requests that hang end the process; for servers that are started again.
    :raises ConfigurationError: a secret or an address is missing, or an operator can't be loaded.
    """
    settings.require("secret_key", "admin_key", "database_url", "redis_url")
    configure_logs("DEBUG" if settings.debug else settings.log_level, process="api")
    app = Flask("api", static_folder=None)
    app.config.update(config(), MAX_CONTENT_LENGTH=settings.max_body_bytes, PROVIDE_AUTOMATIC_OPTIONS=False)
    app.json = JSONAnswers(app)
    app.extensions[EXTENSION] = _services(settings, Hangs(hang_limit))
    # More at once than there are connections to PostgreSQL would wait for one.
    gate, metrics = Gate(settings.database_pool_size), app.extensions[EXTENSION].metrics
    app.wsgi_app = InTime(app.wsgi_app, gate, metrics)  # type: ignore[method-assign]
    around.install(app)
    access.install(app)
    if n := settings.trusted_proxies:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=n, x_proto=n, x_host=n)  # type: ignore[method-assign]
    register(app, RESOURCES)
    return app


def _services(settings: Settings, hangs: Hangs) -> Services:
    operators = load_operators(settings.operators_path)
    artifacts = open_artifacts(settings)
    engine = create_store_engine(
        settings.database_url,
        pool_size=settings.database_pool_size,
        application="orchestrator-api",
        limits=LIMITS,
        circuit=Circuit(_SILENCE_HOLD),
    )
    return Services(
        settings=settings,
        engine=engine,
        live=LiveWire(settings.redis_url, settings.redis_task_queue),
        artifacts=artifacts,
        presence=Presence(artifacts),
        operators=operators,
        site=Site.of(settings),
        keyring=Keyring(engine),
        throttle=Throttle(settings.rate_limit_per_second),
        hangs=hangs,
        backlog=Backlog(settings.max_queued_runs),
        cursors=CursorSeal(settings.secret_key),
        versions=VersionShelf(),
        metrics=HttpMetrics(),
        streams=StreamSlots(_MOST_STREAMS),
        log_gaps=LogGaps(),
        guesses=Throttle(settings.rate_limit_per_second / 10),
    )
