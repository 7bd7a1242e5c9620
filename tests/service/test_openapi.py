"""Requests generated from the service's own OpenAPI document, right and wrong ones: no 500, and answers as documented."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from anomaly.service.openapi import document
from tests.service.served import make_service, running

# the same handlers answer with a version in the path
SCHEMA = schemathesis.openapi.from_dict(document([("plate", "1")])).exclude(path_regex="versions")
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
"""Not that what fits the document is accepted: it cannot say which bytes are an image"""


@pytest.fixture(scope="module")
def base_url(run_folder: Path) -> Iterator[str]:
    with running(make_service(f"plate={run_folder / 'model.onnx'}")) as address:
        yield f"http://{address}"


@SCHEMA.parametrize()
@settings(max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_generated_requests_are_answered_as_documented(case: Case, base_url: str) -> None:
    case.call_and_validate(base_url=base_url, checks=CHECKS)
