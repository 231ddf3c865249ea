"""The entry point of WSGI servers: ``gunicorn --threads 64 --no-control-socket api.wsgi:app`` (one process)."""

from api.app import create_app
from orchestrator.config import load_settings
from orchestrator.watchdog import LIMIT

app = create_app(load_settings(), hang_limit=LIMIT)
