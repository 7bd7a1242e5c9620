"""Shared fit of all memory-bank candidates of a race: features and distances are computed once for all of them."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly.detectors.memory_bank import MemoryBank, nearest
from anomaly.nn.score_pooling import Pooling
from anomaly.training.race_ranking import Measured

RACE_BANK = {"bank_size": 1000, "num_candidates": 16_000, "num_projected": 16_000}
"""Options of the shared bank; smaller than those of a full fit"""
NUM_TIMED = 5
"""Images whose scoring is timed"""


@dataclass(frozen=True)
class BankChoice:
    """The options in which candidates with a shared fit differ."""

    num_backbones: int
    """backbones of the shared bank that the candidate uses, the first ones"""
    position_scale: bool
    pooling: Pooling


@torch.no_grad()
def distances_of(model: MemoryBank, features: Sequence[Tensor]) -> list[Tensor]:
    """Compute the distance of patches to the bank of each backbone, before the position scale.

    Args:
        model: fitted shared bank.
        features: pooled features (N, h, w, C) of each backbone.

    Returns:
        One (N, h, w) tensor per backbone.
    """
    return [
        nearest(embedding.project(f), bank.rows) for (embedding, bank), f in zip(_pairs(model), features, strict=True)
    ]


@torch.no_grad()
def score_choice(model: MemoryBank, distances: Sequence[Tensor], choice: BankChoice) -> tuple[float, float]:
    """Score one image by a candidate; gives the score and the maximum of the map.

    Args:
        model: fitted shared bank.
        distances: distances of the image, from `distances_of`.
        choice: options of the candidate.
    """
    banks = [bank for _, bank in _pairs(model)]
    used = list(zip(banks, distances, strict=True))[: choice.num_backbones]
    place = torch.stack([bank.place for bank, _ in used]).mean(dim=0)
    # without a position scale, the factor of the border stays
    usual = [bank.usual if choice.position_scale else bank.usual / bank.place for bank, _ in used]
    total = torch.stack([d / u for (_, d), u in zip(used, usual, strict=True)]).sum(dim=0)
    pooling = copy.copy(model)  # shares all tensors
    pooling.pooling = replace(model.pooling, pooling=choice.pooling)
    raw = pooling.pooled(total, model.preprocess.size, place=place if choice.position_scale else None)
    return float(raw.score[0]), float(raw.anomaly_map.max())


@torch.no_grad()
def measure_banks(
    model: MemoryBank,
    choices: Mapping[str, BankChoice],
    *,
    good: Sequence[NDArray[np.uint8]],
    drawn: Sequence[NDArray[np.uint8]],
    fit_seconds: float,
) -> dict[str, Measured]:
    """Score images by all candidates of a shared bank.

    Args:
        model: fitted shared bank.
        choices: options by candidate.
        good: held-out good images (H, W, 3) uint8 RGB.
        drawn: images with drawn defects.
        fit_seconds: duration of the shared fit.
    """
    model.eval()
    begin = time.perf_counter()
    scores: dict[str, list[list[tuple[float, float]]]] = {name: [[], []] for name in choices}
    for part, images in enumerate((good, drawn)):
        for image in images:
            distances = distances_of(model, _features(model, image))
            for name, choice in choices.items():
                scores[name][part].append(score_choice(model, distances, choice))
    seconds = fit_seconds + time.perf_counter() - begin
    each = _milliseconds(model, good[:NUM_TIMED])
    return {
        name: Measured(
            good=np.array([score for score, _ in of_good]),
            good_peak=np.array([peak for _, peak in of_good]),
            drawn=np.array([score for score, _ in of_drawn]),
            milliseconds=sum(each[: choices[name].num_backbones]),
            seconds=seconds / len(choices),
        )
        for name, (of_good, of_drawn) in scores.items()
    }


def _features(model: MemoryBank, image: NDArray[np.uint8]) -> list[Tensor]:
    x = model.preprocess(torch.from_numpy(image)[None])
    return [embedding.features(x) for embedding, _ in _pairs(model)]


def _milliseconds(model: MemoryBank, images: Sequence[NDArray[np.uint8]]) -> list[float]:
    """Time to score an image by each backbone alone, on one core: the median over images."""
    found: list[list[float]] = []
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for embedding, bank in _pairs(model):
            times = []
            for image in images:
                begin = time.perf_counter()
                bank(embedding(model.preprocess(torch.from_numpy(image)[None])))
                times.append(1000 * (time.perf_counter() - begin))
            found.append(times)
    finally:
        torch.set_num_threads(num_threads)
    return [float(np.median(times)) for times in found]


def _pairs(model: MemoryBank) -> list[tuple[Any, Any]]:
    return list(zip(model.embeddings, model.banks, strict=True))
