"""Batches of images of one size."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def batches_by_size(shapes: Sequence[Hashable], *, batch_size: int) -> list[list[int]]:
    """Group positions by shape, in order of first appearance, in batches of at most `batch_size`."""
    by_shape: dict[Hashable, list[int]] = {}
    for position, shape in enumerate(shapes):
        by_shape.setdefault(shape, []).append(position)
    return [group[at : at + batch_size] for group in by_shape.values() for at in range(0, len(group), batch_size)]
