"""Structured corruption: opacity and reproducibility."""

from __future__ import annotations

import pytest
import torch

from anomaly.nn.corruption import corrupt


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160)])
def test_corruption_changes_pixels_within_its_opacity(height: int, width: int) -> None:
    x = torch.rand(8, 3, height, width)
    changed = 0
    for seed in range(8):  # every kind of pattern
        corrupted, opacity = corrupt(x, generator=torch.Generator().manual_seed(seed))
        assert corrupted.shape == x.shape
        assert opacity.shape == (8, 1, height, width)
        assert corrupted.min() >= 0
        assert corrupted.max() <= 1
        assert opacity.min() >= 0
        assert opacity.max() <= 1
        assert torch.equal(corrupted[(opacity == 0).expand_as(x)], x[(opacity == 0).expand_as(x)])
        assert (opacity == 0).any()
        changed += int(((corrupted - x).abs().amax(dim=(1, 2, 3)) > 0.05).sum())
    assert changed > 48  # of 64


def test_corruption_depends_on_its_generator() -> None:
    x = torch.rand(3, 3, 64, 64)
    first, again, other = (corrupt(x, generator=torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
