"""Every check of `check_sampler` finds its planted fault in an otherwise correct sampler."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anomaly.errors import UsageError
from anomaly.nn.batch import Batch
from anomaly.samplers.base import Density, Sampler
from anomaly.samplers.detector_form import SamplerDetector
from anomaly.testing import SAMPLER_CHECKS, ContractError, check_sampler
from anomaly.testing.toy_training import Builder

pytestmark = pytest.mark.slow

FLOOR = 0.02


class PixelGaussian(Sampler):
    """Independent Gaussians of all values: x = mean + deviation · z, fitted in one pass."""

    density: ClassVar[Density] = "exact"
    level_bits = 8.0
    unsupported: ClassVar[dict[str, str]] = {"inpaint": "its pixels are independent"}
    mean: Tensor
    squares: Tensor
    num: Tensor

    def __init__(self, *, size: int = 16, epochs: int = 1, batch_size: int = 8) -> None:
        super().__init__(
            size=size, resize="stretch", score="peak", smooth=1, standardise=False, epochs=epochs,
            batch_size=batch_size,
        )  # fmt: skip
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.register_buffer("mean", torch.zeros(3, size, size))
        self.register_buffer("squares", torch.zeros(3, size, size))
        self.register_buffer("num", torch.zeros(()))

    def training_step(self, batch: Batch, index: int) -> None:
        for x in self.preprocessed(batch):
            self.num += 1
            self.mean += (x - self.mean) / self.num
            self.squares += (x * x - self.squares) / self.num

    def configure_optimizers(self) -> None:
        pass

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (3, *self.preprocess.size)

    def deviation(self) -> Tensor:
        return (self.squares - self.mean**2).clamp(min=0).sqrt() + FLOOR

    def decode(self, z: Tensor) -> Tensor:
        return self.mean + self.deviation() * z

    def encode(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation()

    def anomaly_map(self, x: Tensor) -> Tensor:
        nats = 0.5 * self.encode(x) ** 2 + torch.log(self.deviation()) + 0.5 * math.log(2 * math.pi)
        return nats.sum(dim=1)

    def log_prob(self, x: Tensor) -> Tensor:
        return -self.anomaly_map(x).sum(dim=(1, 2))


class LinearDecoder(Sampler):
    """A linear decoder of a few latents under gradient descent; it only draws."""

    REASON = "it has a decoder only"
    unsupported: ClassVar[dict[str, str]] = dict.fromkeys(
        ("encode", "log_prob", "anomaly_map", "reconstruct", "interpolate", "inpaint", "attribute"), REASON
    )

    def __init__(self, *, size: int = 16, epochs: int = 2, batch_size: int = 8, seed: int = 0) -> None:
        super().__init__(
            size=size, resize="stretch", score="mean", smooth=1, standardise=False, epochs=epochs,
            batch_size=batch_size,
        )  # fmt: skip
        self.save_hyperparameters()
        self.layer = nn.Linear(4, 3 * size * size)
        self._random = torch.Generator().manual_seed(seed)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (4,)

    def decode(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.layer(z)).view(-1, 3, *self.preprocess.size)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        x = self.preprocessed(batch)
        drawn = self.decode(torch.randn((len(x), 4), generator=self._random))
        loss = functional.mse_loss(drawn.mean(dim=0), x.mean(dim=0))
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class PositionalArgument(PixelGaussian):
    def __init__(self, size: int = 16) -> None:
        super().__init__(size=size)


class Unseeded(PixelGaussian):
    def training_step(self, batch: Batch, index: int) -> None:
        generator = torch.Generator()
        generator.seed()
        super().training_step(batch, index)
        self.mean += 1e-3 * torch.randn(self.mean.shape, generator=generator)


class BatchNormalised(PixelGaussian):
    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z - z.mean(dim=0))


class WrongSize(PixelGaussian):
    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z)[:, :, ::2]


class RandomDecoder(PixelGaussian):
    """Draws random numbers in `decode`."""

    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z + torch.randn_like(z))


class ConstantDecoder(PixelGaussian):
    def decode(self, z: Tensor) -> Tensor:
        return self.mean + 0.0 * z


class MisspeltAbility(PixelGaussian):
    unsupported: ClassVar[dict[str, str]] = {"inpainting": "its pixels are independent"}


class MissingReason(PixelGaussian):
    unsupported: ClassVar[dict[str, str]] = {"inpaint": " "}


class FalseRefusal(PixelGaussian):
    unsupported: ClassVar[dict[str, str]] = {"inpaint": "its pixels are independent", "log_prob": "not written"}


class SilentRefusal(LinearDecoder):
    """Does not name `encode` in `unsupported`."""

    unsupported: ClassVar[dict[str, str]] = {k: v for k, v in LinearDecoder.unsupported.items() if k != "encode"}

    def functions(self) -> dict[str, tuple[Tensor, ...]]:
        return {"decode": (torch.zeros(2, 4),)}


class UndeclaredDensity(PixelGaussian):
    density: ClassVar[Density] = "none"


class WrongSign(PixelGaussian):
    def log_prob(self, x: Tensor) -> Tensor:
        return -super().log_prob(x)


class Untrained(PixelGaussian):
    def training_step(self, batch: Batch, index: int) -> None:
        pass


class OutsideTheState(PixelGaussian):
    """Keeps a learned factor outside of the state."""

    factor = 1.0

    def training_step(self, batch: Batch, index: int) -> None:
        super().training_step(batch, index)
        self.factor = 1 + float(self.mean.mean())

    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z * self.factor)


class ReadsRawImages(PixelGaussian):
    """Learns from the raw images beside `preprocessed`."""

    def training_step(self, batch: Batch, index: int) -> None:
        super().training_step(batch, index)
        self.squares += 1e-6 * torch.as_tensor(batch.image[0]).float().mean()


class BranchInTheGraph(PixelGaussian):
    def decode(self, z: Tensor) -> Tensor:
        x = super().decode(z)
        return x if torch.compiler.is_exporting() else x + 0.1


class InvertedMap(PixelGaussian):
    def anomaly_map(self, x: Tensor) -> Tensor:
        return -super().anomaly_map(x)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.anomaly_map(x).sum(dim=(1, 2))


class FalseDetector(LinearDecoder):
    def as_detector(self) -> SamplerDetector:
        return SamplerDetector(self)


PLANTED: list[tuple[type[Sampler], str, str]] = [
    (PositionalArgument, "constructor", "argument size is not keyword-only; write"),
    (Unseeded, "same_seed", r"1 tensors differ, first \['mean'\]"),
    (BatchNormalised, "functions", "decode of one image alone differs from decode of the same image in a batch"),
    (WrongSize, "functions", r"decode gives \(2, 3, 8, 16\), expected \(2, 3, 16, 16\)"),
    (RandomDecoder, "sample", "equal seeds draw different images; draw nothing in the functions"),
    (ConstantDecoder, "sample", "all samples are equal; let decode depend on the latent"),
    (MisspeltAbility, "abilities", "`unsupported` names inpainting; the abilities are encode, decode"),
    (MissingReason, "abilities", "`unsupported` gives no reason for inpaint"),
    (FalseRefusal, "abilities", "log_prob works, but `unsupported` names it"),
    (SilentRefusal, "abilities", "encode is refused: .*; write it, or name it in `unsupported`"),
    (UndeclaredDensity, "density", "density is 'none', but log_prob is supported"),
    (WrongSign, "density", "good images have the log-density .*higher is more probable"),
    (Untrained, "learning", "it draws the same images; let the functions use"),
    (OutsideTheState, "state", "another sampler with the same state draws other images"),
    (ReadsRawImages, "region_of_interest", r"change the training: 1 tensors, first \['squares'\]"),
    (BranchInTheGraph, "export", "the graph's decode differs by"),
    (InvertedMap, "detector_form", "fails 'defect': a large red patch scores"),
    (FalseDetector, "detector_form", "as_detector works without an anomaly map"),
]


@pytest.mark.parametrize("correct", [PixelGaussian, LinearDecoder])
def test_correct_sampler_passes(correct: type[Sampler]) -> None:
    check_sampler(correct, options={"size": 16})


@pytest.mark.parametrize(("faulty", "check", "message"), PLANTED)
def test_check_finds_its_planted_fault(faulty: type[Sampler], check: str, message: str) -> None:
    with pytest.raises(ContractError, match=f"^{faulty.__name__} fails '{check}': .*({message})"):
        SAMPLER_CHECKS[check](Builder(faulty, {}))


def test_every_check_has_a_planted_fault() -> None:
    assert {check for _, check, _ in PLANTED} == set(SAMPLER_CHECKS)


def test_failures_are_reported_together() -> None:
    class Raising(InvertedMap):
        def decode(self, z: Tensor) -> Any:
            raise RuntimeError("broken")

    with pytest.raises(ContractError) as error:
        check_sampler(Raising, options={}, checks=("constructor", "sample", "detector_form"))
    text = str(error.value)
    assert text.startswith("2 checks failed:\n\nRaising fails 'sample': it raised RuntimeError: broken (")
    assert "\n\nRaising fails 'detector_form': " in text


def test_unknown_check_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="no check 'expor'; nearest: 'export'"):
        check_sampler(PixelGaussian, options={}, checks=("expor",))
