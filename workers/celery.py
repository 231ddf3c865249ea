"""The Celery app: ``celery -A workers worker -Q cpu -c 4`` makes this host a worker, with nothing else to set up."""

from __future__ import annotations

from typing import Any

from celery import Celery, signals
from celery.apps.worker import Worker, install_worker_term_handler
from kombu.entity import Exchange, Queue

from orchestrator.config import load_settings
from orchestrator.errors import ConfigurationError, StoreUnavailable
from orchestrator.logs import configure_logs, get_logger
from orchestrator.wire.keys import own_queue
from orchestrator.wire.redis import connect, require_supported
from workers import task
from workers.agent import Agent
from workers.host import Host
from workers.memory_kills import find_level
from workers.presence import Presence

log = get_logger(__name__)


class HostWorker(Worker):  # type: ignore[misc]  # Celery has no annotations
    """Celery's worker with our agent beside it.

    Gossip, mingle and Celery's own heartbeats stay off: they storm between many workers, and our heartbeats say more.
    """

    agent: Agent | None = None
    presence: Presence | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        quiet = {"without_gossip": True, "without_mingle": True, "without_heartbeat": True}
        super().__init__(*args, **{**options, **quiet})

    def install_platform_tweaks(self, worker: Any) -> None:
        """Answer every signal to stop with a warm shutdown: Celery's cold one can't end the threads of its pool.

        Whether running trees are finished or stopped is the agent's matter (see ``_leave``).
        """
        super().install_platform_tweaks(worker)
        for name in ("SIGTERM", "SIGINT", "SIGQUIT"):
            install_worker_term_handler(worker, sig=name)

    def setup_queues(self, include: Any, exclude: Any = None) -> None:
        """Refuse queues that the site does not have, in our words."""
        known = tuple(self.app.amqp.queues)
        asked = include.split(",") if isinstance(include, str) else list(include or ())
        if unknown := [name for name in asked if name not in known]:
            raise SystemExit(
                f"No queue {', '.join(unknown)}: this site has {', '.join(known)}. Name one of them after -Q, or add "
                "yours to QUEUES on the scheduler and on every worker."
            )
        super().setup_queues(include, exclude)


class WorkerApp(Celery):  # type: ignore[misc]
    """The app whose worker is ours."""

    @property
    def Worker(self) -> Any:  # noqa: N802 (Celery's name)
        return self.subclass_with_self(HostWorker)


app = WorkerApp("workers", set_as_current=True)
app.config_from_object("celeryconfig")
app.task(name=task.NAME)(task.attempt)


def _set_up_logs(**_: Any) -> None:
    settings = load_settings()
    configure_logs("DEBUG" if settings.debug else settings.log_level, process="worker")


def _start_agent(sender: HostWorker, **_: Any) -> None:
    """Start the fork server and the agent's parts before Celery connects; refuse with a sentence what can't work."""
    try:
        _set_up_logs()  # Celery would, but later
        host = Host(load_settings())
        _check_redis(host)
    except ConfigurationError as error:
        raise SystemExit(str(error)) from error
    queues = tuple(sender.app.amqp.queues.consume_from)
    mine = own_queue(host.incarnation)
    sender.app.amqp.queues.select_add(Queue(mine, Exchange(""), routing_key=mine))
    me = host.me(sender.hostname, sender.concurrency, queues)
    log.info("worker_starts", worker_id=me.incarnation, host_id=me.host_id, memory_kills=find_level(me.incarnation))
    if sender.task_events:
        sender.presence = Presence(sender.app, sender.hostname)
    sender.agent = Agent(
        host,
        me,
        host.open_gpus(),
        lambda taking: _set_intake(sender, (*queues, mine), taking),
        lambda beat: sender.consumer.call_soon(beat),
    )
    sender.agent.adopt()


def _check_redis(host: Host) -> None:
    client = connect(host.settings.redis_url)
    try:
        require_supported(client)
    except StoreUnavailable:  # Celery waits for it
        pass
    finally:
        client.close()


def _open_intake(sender: Any, **_: Any) -> None:
    """Start to talk once the consumer stands, so that no hint comes before we can follow it."""
    worker: HostWorker = sender.controller
    assert worker.agent is not None, "made at worker_init"
    task.attach(worker.agent.take)
    worker.agent.start()
    if worker.presence is not None:
        worker.presence.start()


def _set_intake(worker: HostWorker, queues: tuple[str, ...], taking: bool) -> None:
    """Have the consumer, in its own thread, take hints from all queues or from none."""
    consumer = worker.consumer
    act = consumer.add_task_queue if taking else consumer.cancel_task_queue
    for queue in queues:
        consumer.call_soon(act, queue)


_controllers: list[HostWorker] = []


def _remember(sender: HostWorker, **_: Any) -> None:
    _controllers[:] = [sender]


def _leave(sig: str = "SIGTERM", **_: Any) -> None:
    """TERM or INT: drain. Another signal, or QUIT at once: stop what runs, to be run again elsewhere."""
    for worker in _controllers:
        if worker.agent is not None:
            (worker.agent.preempt if sig == "SIGQUIT" else worker.agent.leave)()


def _stop_agent(sender: HostWorker, **_: Any) -> None:
    if sender.agent is not None:
        sender.agent.stop()
    if sender.presence is not None:
        sender.presence.stop()


signals.setup_logging.connect(_set_up_logs)
signals.worker_init.connect(_remember)
signals.worker_init.connect(_start_agent)
signals.worker_ready.connect(_open_intake)
signals.worker_shutting_down.connect(_leave)
signals.worker_shutdown.connect(_stop_agent)
