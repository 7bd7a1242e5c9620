"""Valid and invalid requests generated from the service's OpenAPI document: no status 500, and documented responses."""

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

from anomaly.service.openapi import openapi_document
from tests.service.running_service import make_service, running

# paths with a version have the same handlers
SCHEMA = schemathesis.openapi.from_dict(openapi_document([("plate", "1")])).exclude(path_regex="versions")
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
"""Without the check for accepted requests: the document cannot describe the bytes of an image"""


@pytest.fixture(scope="module")
def base_url(fitted_plate: Path) -> Iterator[str]:
    with running(make_service(f"plate={fitted_plate / 'model.onnx'}")) as address:
        yield f"http://{address}"


@SCHEMA.parametrize()
@settings(max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_responses_to_generated_requests_match_the_document(case: Case, base_url: str) -> None:
    case.call_and_validate(base_url=base_url, checks=CHECKS)
