"""Celery's settings, read by workers, by the publisher of hints and by Flower alike. Data only; DESIGN §4 says more.

Celery carries hints here and nothing else: each setting below takes away something that loses or doubles work on
Redis, or that waits for ever.
"""

from __future__ import annotations

from kombu.entity import Exchange, Queue

from orchestrator.config import load_settings
from orchestrator.wire.keys import Keys
from orchestrator.wire.keys import broker_url as _broker_url
from orchestrator.wire.transport import use_everywhere as _use_our_transport

_settings = load_settings()

broker_url = _broker_url(_settings.redis_url) or None
# Celery's own transport ends the worker for a message that is no JSON, and with it all that runs there.
_use_our_transport()
# No results in Redis: they grow without bound, and the rows are the truth.
result_backend = None
task_ignore_result = True

# JSON only: a message is never code.
accept_content = ["json"]
task_serializer = "json"
result_serializer = "json"
event_serializer = "json"

# Early ack. With late ack a long task ran four times after the visibility timeout, and one that kills its worker ran
# for ever. What an early ack loses is a hint, and the scheduler sends that again.
task_acks_late = False
task_reject_on_worker_lost = False
# A publish that timed out may have landed; the scheduler decides whether to send again.
task_publish_retry = False
# Timers and limits are rows and the runner's own; Celery's are lost with Redis or kill only the pool's child.
task_time_limit = None
task_soft_time_limit = None

broker_transport_options = {
    # Without the emulation nothing is redelivered by time (or by a wrong clock), and a full Redis neither crashes the
    # worker nor loses a message.
    "ack_emulation": False,
    # With no timeouts a half-open connection leaves a worker deaf for ever; with these it is back in about 7 s.
    "socket_timeout": 10,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 5,
    # A retried LPUSH may be a second message; also, only unretried connections publish in batches.
    "retry_on_timeout": False,
    # Redis may serve others too; our keys and Celery's share one prefix.
    "global_keyprefix": Keys(_settings.redis_task_queue).prefix,
}
broker_connection_retry_on_startup = True
# The default gives up after 100 tries, and the worker dies of a long outage.
broker_connection_max_retries = None
# A full Redis or a read-only replica is to be survived, not to end the worker.
broker_channel_error_retry = True
# The runner is a process of its own, and the lease decides: a lost connection cancels nothing.
worker_cancel_long_running_tasks_on_connection_loss = False
# It lowers the prefetch after a reconnection and raises it again on acks; ours is fixed.
worker_enable_prefetch_count_reduction = False

# A message must not wait behind an hours-long task: fetch only into a free slot.
worker_disable_prefetch = True
worker_prefetch_multiplier = 1
# The slot only waits for the fork server, so a thread will do, and nothing is forked from a threaded process.
worker_pool = "threads"

# The default exchange delivers by the queue's name and needs no binding, so a flush of Redis loses none.
task_queues = [Queue(_name, Exchange(""), routing_key=_name) for _name in _settings.queues]
task_default_queue = "cpu"
task_default_exchange = ""
task_default_routing_key = "cpu"
# A mistyped -Q refuses to start.
task_create_missing_queues = False

# Our logs are records; Celery is not to reformat them, nor to turn prints into warnings.
worker_hijack_root_logger = False
worker_redirect_stdouts = False

# What Flower needs. Gossip, mingle and Celery's heartbeats stay off by the worker's own options: they storm.
worker_enable_remote_control = _settings.worker_remote_control
worker_send_task_events = _settings.worker_remote_control
