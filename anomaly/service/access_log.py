"""The access log: one JSON line per request in the logger `anomaly.service.access_log`."""

from __future__ import annotations

import json
import logging
from typing import Any

_log = logging.getLogger(__name__)


def log_request(entry: dict[str, Any]) -> None:
    """Log a request; a status of 500 or above has the level ERROR, others INFO."""
    _log.log(logging.ERROR if entry["status"] >= 500 else logging.INFO, json.dumps(entry))
