"""Pooling of maps to scores: brute force, regions of interest, and the exported graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from anomaly.errors import UsageError
from anomaly.nn.score_pooling import ScorePooling, largest_mean


def maps(num: int = 3, height: int = 24, width: int = 32) -> Tensor:
    return torch.rand(num, height, width, generator=torch.Generator().manual_seed(0))


def region(height: int = 24, width: int = 32) -> Tensor:
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[6:18, 8:20] = True
    return inside


def test_maximum_counts_the_region_only() -> None:
    values, inside = maps(), region()
    values[:, 0, 0] = 9.0
    assert torch.equal(ScorePooling()(values), values.amax(dim=(1, 2)))
    assert torch.equal(ScorePooling()(values, inside=inside), values[:, inside].amax(dim=1))


def test_top_is_the_mean_of_the_largest_cells_after_a_mean() -> None:
    values = maps().double()
    cells = values.view(3, 6, 4, 8, 4).mean(dim=(2, 4)).numpy()
    padded = np.pad(cells, ((0, 0), (1, 1), (1, 1)), mode="edge")
    smooth = sum(padded[:, r : r + 6, c : c + 8] for r in range(3) for c in range(3)) / 9
    expected = np.sort(smooth.reshape(3, -1), axis=1)[:, -5:].mean(axis=1)  # 10 % of 48 cells
    score = ScorePooling("top", top=0.1, cell=4)(values)
    assert np.allclose(score.numpy(), expected)


def test_one_peak_raises_top_less_than_the_maximum() -> None:
    values = maps()
    peak = values.clone()
    peak[:, 5, 5] += 10
    gain = {p: (ScorePooling(p)(peak) - ScorePooling(p)(values)).amin() for p in ("maximum", "top")}
    assert gain["maximum"] > 8
    assert gain["top"] < 2


def test_share_is_taken_of_the_cells_inside() -> None:
    values, inside = maps(), region()
    expected = values[:, inside].sort(dim=1, descending=True).values[:, :14].mean(dim=1)  # 10 % of 144
    assert torch.allclose(largest_mean(values, top=0.1, inside=inside), expected)


@pytest.mark.parametrize("cell", [1, 4])
def test_values_outside_do_not_change_the_score(cell: int) -> None:
    values, inside = maps(), region()
    pooling = ScorePooling("top", top=0.05, cell=cell)
    changed = torch.where(inside, values, 100.0)
    assert torch.allclose(pooling(values, inside=inside), pooling(changed, inside=inside))


def test_region_of_everything_equals_no_region() -> None:
    values, pooling = maps(), ScorePooling("top", top=0.05, cell=4)
    everything = torch.ones(24, 32, dtype=torch.bool)
    assert torch.allclose(pooling(values, inside=everything), pooling(values))


def test_region_smaller_than_a_cell_is_scored() -> None:
    values, inside = maps(), torch.zeros(24, 32, dtype=torch.bool)
    inside[5, 5] = True
    assert torch.allclose(ScorePooling("top", cell=4)(values, inside=inside), values[:, 5, 5])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"top": 0}, "top 0: give a share"), ({"top": 1.5}, "top 1.5"), ({"pooling": "mean"}, "pooling 'mean'")],
)
def test_invalid_options_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ScorePooling(**options)


class _Pooled(nn.Module):
    inside: Tensor

    def __init__(self, pooling: ScorePooling, inside: Tensor | None) -> None:
        super().__init__()
        self.pooling, self.has_roi = pooling, inside is not None
        self.register_buffer("inside", inside)

    def forward(self, values: Tensor) -> Tensor:
        return self.pooling(values, inside=self.inside if self.has_roi else None)


@pytest.mark.slow
@pytest.mark.parametrize("inside", [None, region()])
@pytest.mark.parametrize("pooling", [ScorePooling(), ScorePooling("top", top=0.05, cell=4)])
def test_exported_graph_scores_batches_of_any_size(
    pooling: ScorePooling, inside: Tensor | None, tmp_path: Path
) -> None:
    module, file = _Pooled(pooling, inside).eval(), tmp_path / "pooling.onnx"
    dynamic = {"values": {0: torch.export.Dim.DYNAMIC}}
    torch.onnx.export(module, (maps(2),), file, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for num in (1, 5):
        values = maps(num)
        (score,) = session.run(None, {session.get_inputs()[0].name: values.numpy()})
        assert np.allclose(score, module(values).numpy(), rtol=1e-5)
