"""Requests generated from the service's own OpenAPI document, right and wrong ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode
from served import make_app, make_service
from starlette.testclient import TestClient
