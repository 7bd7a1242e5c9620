"""Checks of the contract, for detectors and samplers of any package.

Example: `check_detector(MyDetector, options={"size": 64, "epochs": 2})`
"""

from __future__ import annotations

from anomaly.testing.checks import CHECKS, check_detector
from anomaly.testing.toy_training import ContractError

__all__ = ["CHECKS", "ContractError", "check_detector"]
