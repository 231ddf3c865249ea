"""The entry point of WSGI servers: ``gunicorn --worker-class api.server.Threads api.wsgi:app`` (one process)."""

from api.app import create_app
from orchestrator.config import load_settings
from orchestrator.lasting import collect_rarely
from orchestrator.watchdog import LIMIT

app = create_app(load_settings(), hang_limit=LIMIT)
collect_rarely()
