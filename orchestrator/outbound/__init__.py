"""The one HTTP client for URLs that users give: it can't be talked into calling the site's own network."""

from __future__ import annotations

from orchestrator.outbound.client import OutboundClient
from orchestrator.outbound.response import Response

__all__ = ["OutboundClient", "Response"]
