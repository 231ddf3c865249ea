"""The entry point of WSGI servers: ``gunicorn --threads 64 --no-control-socket api.wsgi:app`` (one process)."""

from api.app import create_app
from orchestrator.config import load_settings

app = create_app(load_settings())
