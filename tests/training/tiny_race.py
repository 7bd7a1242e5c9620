"""Candidates that race in seconds, with random weights."""

from __future__ import annotations

from typing import Any

from anomaly.training.candidates import Candidate, Entrants
from anomaly.training.race_bank import BankChoice
from tests.detectors.tiny_detectors import OPTIONS

BANK: dict[str, Any] = {k: list(v) if isinstance(v, tuple) else v for k, v in OPTIONS["memory_bank"].items()}
NEIGHBOUR: dict[str, Any] = {
    k: list(v) if isinstance(v, tuple) else v for k, v in OPTIONS["frozen_features"].items()
} | {"method": "pca", "num_components": 8}


def bank(name: str, choice: BankChoice) -> Candidate:
    """A candidate of the shared bank."""
    options = BANK | {"position_scale": choice.position_scale, "pooling": choice.pooling}
    return Candidate(name, "memory_bank", options, "kept", "bank", BANK, choice)


def entrants() -> Entrants:
    """Two candidates with a shared bank, and one of another family."""
    return Entrants(
        (
            bank("memory bank", BankChoice(1, True, "top")),
            bank("memory bank, maximum", BankChoice(1, True, "maximum")),
            Candidate("principal components", "frozen_features", NEIGHBOUR, "kept", "pca"),
        ),
        (),
    )
