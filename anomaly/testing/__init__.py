"""Checks of the contract, for detectors and samplers of any package.

Examples: `check_detector(MyDetector, options={"size": 64, "epochs": 2})`,
`check_sampler(MySampler, options={"size": 32, "epochs": 2})`
"""

from __future__ import annotations

from anomaly.testing.checks import CHECKS, check_detector
from anomaly.testing.sampler_checks import SAMPLER_CHECKS, check_sampler
from anomaly.testing.toy_training import ContractError

__all__ = ["CHECKS", "SAMPLER_CHECKS", "ContractError", "check_detector", "check_sampler"]
