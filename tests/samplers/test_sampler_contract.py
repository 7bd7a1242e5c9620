"""Every registered sampler keeps the contract of `check_sampler`."""

from __future__ import annotations

import pytest

from anomaly.registry import sampler_class
from anomaly.samplers import SAMPLERS
from anomaly.testing import SAMPLER_CHECKS, check_sampler
from tests.samplers.tiny_samplers import OPTIONS

pytestmark = pytest.mark.slow

CHECKS = [name for name in SAMPLER_CHECKS if name != "export"]
"""All checks except the export, which test_samplers.py covers"""


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_sampler_keeps_the_contract(name: str) -> None:
    check_sampler(sampler_class(name), options=OPTIONS[name], checks=CHECKS)
