"""Requests generated from the service's own OpenAPI document, right and wrong ones: no 500, and answers as documented."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from served import make_service, running

from anomaly.service.openapi import document

SCHEMA = schemathesis.openapi.from_dict(document())


@pytest.fixture(scope="module")
def base_url(run_folder: Path) -> Iterator[str]:
    with running(make_service(f"plate={run_folder / 'model.onnx'}")) as address:
        yield f"http://{address}"


@SCHEMA.parametrize()
@settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_generated_requests_are_answered_as_documented(case: Case, base_url: str) -> None:
    case.call_and_validate(base_url=base_url)
