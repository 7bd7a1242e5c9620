"""Feature cache: one computation per image, within the memory bound."""

from __future__ import annotations

import torch
from torch import Tensor

from anomaly.nn.feature_cache import FeatureCache


def test_feature_cache_computes_once_within_its_bound() -> None:
    calls: list[list[str]] = []

    def features(*paths: str) -> list[Tensor]:
        def compute() -> list[Tensor]:
            calls.append(list(paths))
            value = torch.tensor([float(ord(path)) for path in paths], requires_grad=True)
            return [value[:, None] * torch.ones(1, 4), value[:, None, None] * torch.ones(1, 2, 2)]

        return cache.lookup(paths, compute)

    cache = FeatureCache(max_bytes=3 * 8 * 4)  # three images of two levels of four floats
    first = features("a", "b")
    assert not any(level.requires_grad for level in first)
    for one, other in zip(features("b", "a"), first, strict=True):
        assert torch.equal(one, other.flip(0))
    assert calls == [["a", "b"]]
    features("c", "d")  # one of them fits into memory
    features("c")
    assert calls == [["a", "b"], ["c", "d"]]
    features("d")
    features("d")
    assert calls[2:] == [["d"], ["d"]]
    cache.clear()
    features("d", "a", "b")
    features("b")
    assert calls[4:] == [["d", "a", "b"]]
