"""Latent diffusion: phases, conditions and training targets, known pixels, drawn defects, and detector form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from anomaly.errors import DataError, UsageError
from anomaly.generation.base import Array, Options, SamplerInfo
from anomaly.generation.latent_diffusion import LatentDiffusionLoop
from anomaly.samplers._defect_examples import read_examples
from anomaly.samplers.latent_diffusion import LatentDiffusion
from anomaly.testing.toy_training import draw_defects, draw_parts, train_on

TINY: dict[str, Any] = {
    "size": 16, "autoencoder_widths": (16, 32), "widths": (8, 16), "patch": 1, "epochs": 20, "batch_size": 8, "smooth": 3,
    "learning_rate": 1e-2, "detect_steps": 1, "autoencoder_share": 0.7,
}  # fmt: skip


def build(**options: Any) -> LatentDiffusion:
    torch.manual_seed(0)
    return LatentDiffusion(**(TINY | options))


@pytest.fixture(scope="module")
def trained() -> LatentDiffusion:
    sampler = build()
    train_on(sampler, draw_parts(24, seed=24))
    return sampler


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class Copying:
    """Latents are the images at a quarter of the size; the network predicts the noise that leads to a latent of 0.5."""

    levels = (0.99, 0.7, 0.3, 0.05)

    def __init__(self) -> None:
        own = {"alphas_cumprod": list(self.levels), "num_classes": 2, "reach": 2.0}
        self.info = SamplerInfo("Copying", [16, 16], [3, 4, 4], {}, own)
        self.conditions: list[Array] = []

    def __call__(self, function: str, *inputs: NDArray[Any]) -> NDArray[Any]:
        if function == "encode":
            return inputs[0].reshape(-1, 3, 4, 4, 4, 4).mean(axis=(3, 5))
        if function == "decode":
            return inputs[0].repeat(4, axis=2).repeat(4, axis=3)
        z, t, condition = inputs
        self.conditions.append(condition)
        a = np.float32(self.levels[int(t[0])])
        eps: Array = ((z - np.sqrt(a) * np.float32(0.5)) / np.sqrt(1 - a)).astype(np.float32)
        return eps

    def sampling_loop(self) -> LatentDiffusionLoop:
        return LatentDiffusionLoop(self, self.info)


def a_mask(n: int) -> NDArray[np.bool_]:
    mask = np.zeros((n, 16, 16), dtype=bool)
    mask[:, 5:8, 2:9] = True
    return mask


# sampling loop


def test_defects_are_drawn_only_under_the_mask() -> None:
    fake = Copying()
    x, mask = rng(3).random((2, 3, 16, 16), dtype=np.float32), a_mask(2)
    drawn = fake.sampling_loop().draw_defect(x, mask, rng=rng(), options=Options(steps=4, label=1))
    changed = (drawn != x).any(axis=1)
    assert np.array_equal(changed, mask)
    assert drawn[:, :, 6, 4] == pytest.approx(np.full((2, 3), 0.5), abs=1e-5)  # all neighbours are masked
    border = x[0, 0, 5, 4] + (0.5 + 0.5 * 6 / 9) * (0.5 - x[0, 0, 5, 4])
    assert drawn[0, 0, 5, 4] == pytest.approx(border, abs=1e-5)
    (condition, *_) = fake.conditions
    where, known, latent, classes = condition[:, 0], condition[:, 1], condition[:, 2:5], condition[:, 5:]
    cells = np.zeros((2, 4, 4), dtype=bool)
    cells[:, 1, 0:3] = True
    assert np.array_equal(where, cells)
    assert np.array_equal(known, ~cells)
    assert np.array_equal(latent, fake("encode", x) * ~cells[:, None])
    assert not classes[:, 0].any()
    assert np.array_equal(classes[:, 1], cells)


def test_sampling_without_a_mask_has_an_empty_condition() -> None:
    fake = Copying()
    drawn = fake.sampling_loop().sample(3, rng=rng(), options=Options(steps=4))
    assert drawn == pytest.approx(np.full((3, 3, 16, 16), 0.5), abs=1e-5)
    assert len(fake.conditions) == 4
    assert not any(condition.any() for condition in fake.conditions)
    assert fake.conditions[0].shape == (3, 2 + 3 + 2, 4, 4)


def test_inpainting_and_reconstruction_keep_known_pixels() -> None:
    loop = Copying().sampling_loop()
    x, mask = rng(3).random((2, 3, 16, 16), dtype=np.float32), a_mask(2)
    drawn = loop.inpaint(x, mask, rng=rng(), options=Options(steps=4, eta=1.0))
    known = np.broadcast_to(~mask[:, None], x.shape)
    assert np.array_equal(drawn[known], x[known])
    assert drawn[~known] == pytest.approx(np.full(int((~known).sum()), 0.5), abs=1e-5)
    repaired = loop.reconstruct(x, rng=rng(), options=Options(steps=4, strength=0.5))
    assert repaired == pytest.approx(np.full_like(x, 0.5), abs=1e-5)


def test_latents_are_clipped_to_their_reach() -> None:
    fake = Copying()
    fake.info.settings["reach"] = 0.25
    assert fake.sampling_loop().sample(1, rng=rng(), options=Options(steps=2)).max() == pytest.approx(0.25, abs=1e-5)


def test_sampling_loop_refuses_invalid_options() -> None:
    loop = Copying().sampling_loop()
    x, mask = np.zeros((2, 3, 16, 16), dtype=np.float32), a_mask(2)
    for label in (-2, 2):
        with pytest.raises(UsageError, match=f"label {label}: the classes are 0 to 1; omit it for any class"):
            loop.draw_defect(x, mask, rng=rng(), options=Options(steps=2, label=label))
    with pytest.raises(UsageError, match="mask of shape"):
        loop.draw_defect(x, mask[:1], rng=rng(), options=Options(steps=2))
    with pytest.raises(UsageError, match=r"steps 9: .*give 1 to 4"):
        loop.draw_defect(x, mask, rng=rng(), options=Options(steps=9))
    with pytest.raises(UsageError, match="Copying takes"):
        loop.draw_defect(x[:, :, :8], mask, rng=rng(), options=Options(steps=2))
    assert loop.known_options == {"steps", "eta", "strength", "label"}


# sampler


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 24}, "size 24: .*multiple of 16, e.g. 16"),
        ({"autoencoder_widths": (6,)}, r"autoencoder_widths \[6\]: give multiples of 4"),
        ({"autoencoder_widths": ()}, "autoencoder_widths"),
        ({"autoencoder_share": 1.0}, "autoencoder_share 1.0: both phases"),
        ({"num_classes": -1}, "num_classes -1"),
        ({"widths": (8, 16, 16, 16, 16)}, "size 8 with patch 1 and 5 levels"),
        ({"smooth": 2}, "smooth 2"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(**options)


def test_painted_images_differ_only_under_their_masks() -> None:
    sampler = build(num_classes=3)
    x = torch.full((64, 3, 16, 16), 0.5)
    painted = sampler._paint(x)
    same = (painted.x == x).all(dim=1, keepdim=True)
    assert bool(same[painted.where == 0].all())
    assert float(same[painted.where == 1].float().mean()) < 0.2
    assert bool((painted.where <= painted.hidden).all())
    has = painted.where.flatten(1).any(dim=1)
    assert 0.2 < float(has.float().mean()) < 0.8
    assert bool(painted.hidden[~has].any())
    has_label = has & (painted.label >= 0)
    assert 0.2 < float((painted.label >= 0).float().mean()) < 0.8
    for n in has_label.nonzero()[:, 0].tolist():
        brighter = float((painted.x[n] - 0.5).mean(dim=0)[painted.where[n, 0] == 1].mean())
        assert int(painted.label[n]) == (0 if brighter < -0.1 else 1 if brighter < 0.1 else 2)


def test_training_and_sampling_use_the_same_condition() -> None:
    sampler = build().eval()
    sampler.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    seen: list[torch.Tensor] = []
    sampler.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = sampler.preprocess(draw_parts(32, seed=3))
    painted = sampler._paint(x)
    sampler._denoiser_loss(painted)
    z_t, m, k, latent, classes = torch.split(seen[0], [4, 1, 1, 4, 3], dim=1)
    cells = painted.where.reshape(32, 1, 8, 2, 8, 2).amax(dim=(3, 5))
    hidden = painted.hidden.reshape(32, 1, 8, 2, 8, 2).amax(dim=(3, 5))
    assert torch.equal(m, cells)
    given = k.flatten(1).any(dim=1)
    assert 0.2 < float(given.float().mean()) < 0.8
    assert torch.equal(k[given], 1 - hidden[given])
    with torch.no_grad():
        assert torch.allclose(latent, sampler.encode(x) * k, atol=1e-6)
    assert torch.equal(classes.sum(dim=1, keepdim=True), m * (painted.label >= 0).view(-1, 1, 1, 1))
    assert bool(torch.isfinite(z_t).all())


@pytest.mark.slow
def test_each_phase_changes_only_its_own_weights(trained: LatentDiffusion) -> None:
    start = build()
    assert int(trained.num_steps) == 60
    assert int(trained.ema.num_updates) == 18
    for name in ("autoencoder", "network"):
        before, after = getattr(start, name).state_dict(), getattr(trained, name).state_dict()
        assert not any(torch.equal(before[key], after[key]) for key in before)
    short = build(epochs=1, autoencoder_share=0.3)
    train_on(short, draw_parts(24, seed=24))
    assert int(short.ema.num_updates) == 2
    first = short.ema.average.state_dict()
    assert any(not torch.equal(first[key], value) for key, value in start.ema.average.state_dict().items())


@torch.no_grad()
def test_latents_have_unit_deviation(trained: LatentDiffusion) -> None:
    x = trained.preprocess(draw_parts(16, seed=24))
    z = trained.encode(x)
    assert z.shape == (16, *trained.latent_shape)
    assert z.mean(dim=(0, 2, 3)).abs().max().item() < 0.15
    assert z.std(dim=(0, 2, 3)) == pytest.approx(torch.ones(4), abs=0.15)
    assert float(z.abs().max()) < float(trained.reach)
    assert float((trained.decode(z) - x).abs().mean()) < 0.1


@pytest.mark.slow
def test_sampling_loop_is_reproducible_and_gives_images(trained: LatentDiffusion) -> None:
    loop, options = trained.sampling_loop(), Options(steps=4, eta=0.5)
    x, mask = trained.preprocess(draw_parts(2, seed=5)).numpy(), a_mask(2)
    for draw in (
        lambda seed: loop.sample(2, rng=rng(seed), options=options),
        lambda seed: loop.reconstruct(x, rng=rng(seed), options=options),
        lambda seed: loop.inpaint(x, mask, rng=rng(seed), options=options),
        lambda seed: loop.draw_defect(x, mask, rng=rng(seed), options=options),  # type: ignore[attr-defined]
    ):
        one, two, other = draw(0), draw(0), draw(1)
        assert np.array_equal(one, two)
        assert not np.array_equal(one, other)
        assert one.shape == x.shape
        assert one.dtype == np.float32
        assert one.min() >= 0
        assert one.max() <= 1
    way = loop.interpolate(x[0], x[1], num=3, options=options)
    assert way.shape == (3, 3, 16, 16)


def test_unsupported_abilities_are_refused_with_the_reason(trained: LatentDiffusion) -> None:
    assert trained.density == "none"
    with pytest.raises(UsageError, match="LatentDiffusion does not support log_prob: its decoder has no density"):
        trained.log_prob(torch.zeros(1, 3, 16, 16))


@torch.no_grad()
def test_defects_score_higher_than_good_images(trained: LatentDiffusion) -> None:
    good = draw_parts(8, seed=500)
    defect = draw_defects(good)
    detector = trained.as_detector().eval()
    assert float(detector(defect).score.min()) > float(detector(good).score.max())
    anomaly_map = trained.anomaly_map(trained.preprocess(defect))
    assert anomaly_map.shape == (8, 16, 16)
    usual = trained.anomaly_map(trained.preprocess(good))
    assert float(anomaly_map[:, 6:11, 7:12].mean()) > 1.2 * float(usual[:, 6:11, 7:12].mean())


def test_real_defects_replace_half_of_the_patterns(category: Path) -> None:
    sampler = build(num_classes=3, examples=str(category))
    x = torch.full((64, 3, 16, 16), 0.5)
    painted = sampler._paint(x)
    images, masks = read_examples(category, sampler.preprocess)
    assert len(images) == len(masks) == 6
    assert masks.flatten(1).any(dim=1).all()
    real = (painted.known != x).flatten(1).any(dim=1)
    assert 0.1 < float(real.float().mean()) < 0.45
    for n in real.nonzero()[:, 0].tolist():
        of = [e for e in range(6) if torch.equal(painted.x[n], images[e]) and torch.equal(painted.where[n], masks[e])]
        assert of
        assert torch.equal(painted.hidden[n], painted.where[n])
        assert int(painted.label[n]) == -1
    assert bool((painted.known[~real] == x[~real]).all())


def test_examples_without_masks_are_refused(category: Path) -> None:
    with pytest.raises(DataError, match="has no defect with a mask"):
        read_examples(category / "train" / "good", build().preprocess)
