"""`FeatureCache`: frozen features, computed once and kept in memory between epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class FeatureCache:
    """Features per image path, up to a bound in bytes. Features beyond the bound are computed again each time.

    Args:
        max_bytes: upper bound of the memory for features; 0 keeps none.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._kept: dict[str, list[Tensor]] = {}

    def lookup(self, paths: Sequence[str], compute: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Return the features of a batch, computed unless all of them are cached.

        Args:
            paths: paths of the batch's N images.
            compute: function that computes the batch's features, one (N, ...) tensor per level.

        Returns:
            One (N, ...) tensor per level, without gradient.
        """
        if all(path in self._kept for path in paths):
            rows = [self._kept[path] for path in paths]
            return [torch.stack(level) for level in zip(*rows, strict=True)]
        with torch.no_grad():
            levels = compute()
        for row, path in enumerate(paths):
            features = [level[row].clone() for level in levels]
            num_bytes = sum(f.numel() * f.element_size() for f in features)
            if path not in self._kept and self._num_bytes + num_bytes <= self._max_bytes:
                self._kept[path] = features
                self._num_bytes += num_bytes
        return levels

    def clear(self) -> None:
        """Drop all features."""
        self._kept.clear()
        self._num_bytes = 0
