"""The peer: a plain Celery application with a no-op task, configured as its documentation does for Redis."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

app = Celery("benchmark", broker=os.environ["BENCHMARK_REDIS_URL"], backend=os.environ["BENCHMARK_REDIS_URL"])
app.conf.update(worker_hijack_root_logger=False, broker_connection_retry_on_startup=True)


@app.task(name="benchmark.noop")  # type: ignore[untyped-decorator]
def noop(*_: Any) -> None:
    """Do nothing; takes whatever a canvas hands on."""
