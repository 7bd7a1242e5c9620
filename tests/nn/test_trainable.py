"""`Trainable`: finite losses, checkpoints of random generators, gradient clipping and cached features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anomaly.errors import TrainingError
from anomaly.nn.batch import Batch
from anomaly.nn.feature_cache import FeatureCache
from anomaly.nn.preprocess import Preprocess
from anomaly.nn.trainable import Trainable
from anomaly.testing.toy_training import draw_parts, train_on


class Scaled(Trainable):
    """One learned factor, with a random generator and two caches."""

    def __init__(self, *, gain: float = 1.0, max_gradient_norm: float | None = None) -> None:
        preprocess = Preprocess(size=(8, 8), resize="stretch", mean=(0.5,) * 3, std=(0.25,) * 3)
        super().__init__(preprocess=preprocess, epochs=1, batch_size=4)
        self.max_gradient_norm = max_gradient_norm
        self.gain = gain
        self.factor = nn.Parameter(torch.ones(()))
        self.gradients: list[float] = []
        self._random = torch.Generator().manual_seed(5)
        self._caches = [FeatureCache(max_bytes=10_000) for _ in range(2)]
        self._one, self._other = self._caches

    def training_step(self, batch: Batch, index: int) -> Tensor:
        (x,) = self._one.lookup(batch.path, lambda: [self.preprocessed(batch)])
        self._other.lookup(batch.path, lambda: [x])
        loss = (self.factor * self.gain * (x + torch.rand((), generator=self._random))).mean()
        self.log("loss", loss)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        assert self.factor.grad is not None
        self.gradients.append(abs(float(self.factor.grad)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.factor], lr=0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_raises(value: float) -> None:
    with pytest.raises(TrainingError, match=r"the loss term 'loss' became (nan|inf) in epoch 1"):
        train_on(Scaled(gain=value), draw_parts(4, seed=0))


def test_checkpoint_restores_random_generators() -> None:
    one, other = Scaled(), Scaled()
    torch.rand(3, generator=one._random)
    checkpoint: dict[str, Any] = {}
    one.on_save_checkpoint(checkpoint)
    other.on_load_checkpoint(checkpoint)
    assert torch.equal(torch.rand(4, generator=one._random), torch.rand(4, generator=other._random))


def test_caches_are_empty_after_training() -> None:
    model = Scaled()
    train_on(model, draw_parts(8, seed=0))
    assert [len(cache._kept) for cache in model._caches] == [0, 0]


@pytest.mark.parametrize(("bound", "clipped"), [(None, False), (0.5, True)])
def test_gradient_norm_is_bounded_if_requested(bound: float | None, clipped: bool) -> None:
    model = Scaled(gain=100.0, max_gradient_norm=bound)
    train_on(model, draw_parts(8, seed=0))
    after = abs(float(model.factor.grad)) if model.factor.grad is not None else 0.0
    assert min(model.gradients) > 1.0
    assert (after <= 0.5 + 1e-6) == clipped
