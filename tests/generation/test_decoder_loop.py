"""Decoder loop: reproducible samples, interpolation and directions in the latent, inpainting, and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anomaly.errors import Unsupported, UsageError
from anomaly.generation import sampling_loop_class
from anomaly.generation.base import Options, SamplerInfo
from anomaly.generation.decoder import DecoderLoop

SIZE, LATENT = (4, 6), 5


class Linear:
    """Linear autoencoder: images are 0.5 + z A, with orthonormal rows of A."""

    def __init__(self) -> None:
        values = np.random.default_rng(7).standard_normal((3 * SIZE[0] * SIZE[1], LATENT))
        self.rows = np.linalg.qr(values)[0].T.astype(np.float32)
        self.calls: list[str] = []

    def __call__(self, function: str, *inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.calls.append(function)
        (values,) = inputs
        assert values.dtype == np.float32
        if function == "encode":
            return (values.reshape(len(values), -1) - np.float32(0.5)) @ self.rows.T
        return (np.float32(0.5) + values @ self.rows).reshape(-1, 3, *SIZE)


def build_loop(*, unsupported: dict[str, str] | None = None, **settings: Any) -> tuple[DecoderLoop, Linear]:
    run = Linear()
    info = SamplerInfo(
        sampler="Linear", size=list(SIZE), latent_shape=[LATENT], unsupported=unsupported or {}, settings=settings
    )
    return DecoderLoop(run, info), run


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def images(num: int, *, seed: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Images that the autoencoder reconstructs exactly."""
    z = 0.3 * rng(seed).standard_normal((num, LATENT)).astype(np.float32)
    return Linear()("decode", z)


def test_registry_finds_the_loop() -> None:
    assert sampling_loop_class("decoder") is DecoderLoop


def test_samples_follow_from_the_seed_and_the_temperature() -> None:
    loop, run = build_loop()
    first = loop.sample(3, rng=rng(), options=Options())
    assert first.shape == (3, 3, *SIZE)
    assert first.dtype == np.float32
    assert np.array_equal(first, loop.sample(3, rng=rng(), options=Options()))
    assert not np.array_equal(first, loop.sample(3, rng=rng(1), options=Options()))
    z = rng().standard_normal((3, LATENT), dtype=np.float32)
    halved = loop.sample(3, rng=rng(), options=Options(temperature=0.5))
    np.testing.assert_allclose(halved, np.clip(run("decode", 0.5 * z), 0, 1), atol=1e-6)
    np.testing.assert_allclose(loop.sample(2, rng=rng(), options=Options(temperature=0.0)), 0.5)
    wide = loop.sample(50, rng=rng(), options=Options(temperature=9.0))
    assert wide.min() == 0  # clipped, not scaled
    assert wide.max() == 1


@pytest.mark.parametrize("temperature", [-0.5, float("nan")])
def test_invalid_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(UsageError, match=f"temperature {temperature}: .* give 0 or more"):
        build_loop()[0].sample(1, rng=rng(), options=Options(temperature=temperature))


def test_reconstruction_is_the_projection() -> None:
    loop, _ = build_loop()
    x = images(4)
    np.testing.assert_allclose(loop.reconstruct(x, rng=rng(), options=Options()), x, atol=1e-5)
    noisy = x + 0.05 * rng(3).standard_normal(x.shape).astype(np.float32)
    back = loop.reconstruct(noisy, rng=rng(), options=Options())
    assert np.abs(back - x).mean() < 0.5 * np.abs(noisy - x).mean()


def test_interpolation_is_linear_and_includes_both_ends() -> None:
    loop, _ = build_loop()
    a, b = images(2)
    images_between = loop.interpolate(a, b, num=5, options=Options())
    assert images_between.shape == (5, 3, *SIZE)
    np.testing.assert_allclose(images_between[[0, -1]], [a, b], atol=1e-5)
    np.testing.assert_allclose(images_between[1], 0.75 * a + 0.25 * b, atol=1e-5)


def test_spherical_interpolation_keeps_the_radius() -> None:
    loop, run = build_loop(path="spherical")
    a, b = images(2)
    za, zb = run("encode", np.stack((a, b)))
    b = run("decode", (zb * np.linalg.norm(za) / np.linalg.norm(zb))[None])[0]
    images_between = loop.interpolate(a, b, num=7, options=Options())
    np.testing.assert_allclose(images_between[[0, -1]], [a, b], atol=1e-5)
    z = run("encode", images_between)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), np.linalg.norm(za), rtol=1e-4)
    steps = (z[1:] * z[:-1]).sum(axis=1)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)  # equal angles
    still = loop.interpolate(a, a, num=3, options=Options())  # parallel latents have no arc
    np.testing.assert_allclose(still, np.stack((a, a, a)), atol=1e-5)


def test_inpainting_keeps_known_pixels_and_restores_the_hidden_ones() -> None:
    loop, _ = build_loop()
    x = images(3)
    mask = np.zeros((3, *SIZE), dtype=bool)
    mask[0, :2, :2] = mask[1, 1, 1:3] = True  # the third image is fully known
    broken = np.where(mask[:, None], np.float32(1.0), x)
    drawn = loop.inpaint(broken, mask, rng=rng(), options=Options())
    known = np.broadcast_to(~mask[:, None], x.shape)
    assert drawn.dtype == np.float32
    assert np.array_equal(drawn[known], x[known])
    assert np.abs(drawn - x).max() < 0.05
    start = np.where(mask[:, None], loop.sample(3, rng=rng(), options=Options()), x)
    assert np.abs(drawn - x).max() < 0.2 * np.abs(start - x).max()
    garbage = np.where(mask[:, None], np.float32(0.0), x)  # the masked content has no influence
    assert np.array_equal(drawn, loop.inpaint(garbage, mask, rng=rng(), options=Options()))


def test_attribute_moves_by_the_difference_of_the_mean_latents() -> None:
    loop, run = build_loop()
    x, present, absent = images(2), images(3, seed=5), images(4, seed=6)
    direction = run("encode", present).mean(axis=0) - run("encode", absent).mean(axis=0)
    moved = loop.attribute(x, present, absent, strength=0.5, options=Options())
    expected = np.clip(run("decode", run("encode", x) + 0.5 * direction), 0, 1)
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    np.testing.assert_allclose(loop.attribute(x, present, absent, strength=0.0, options=Options()), x, atol=1e-5)


def test_unsupported_abilities_are_refused_before_any_function_runs() -> None:
    x, mask = images(1), np.zeros((1, *SIZE), dtype=bool)
    arguments: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "sample": ((1,), {"rng": rng()}),
        "reconstruct": ((x,), {"rng": rng()}),
        "interpolate": ((x[0], x[0]), {"num": 2}),
        "inpaint": ((x, mask), {"rng": rng()}),
        "attribute": ((x, x, x), {"strength": 1.0}),
    }
    loop, run = build_loop(unsupported={ability: f"no {ability} in the paper" for ability in arguments})
    for ability, (positional, named) in arguments.items():
        with pytest.raises(Unsupported, match=f"Linear does not support {ability}: no {ability} in the paper"):
            getattr(loop, ability)(*positional, **named, options=Options())
    assert not run.calls
    without_encoder, _ = build_loop(unsupported={"encode": "there is a generator only"})
    with pytest.raises(Unsupported, match="Linear does not support encode: there is a generator only"):
        without_encoder.reconstruct(x, rng=rng(), options=Options())


def test_wrong_shapes_are_refused_with_the_expected_ones() -> None:
    loop, run = build_loop()
    x, other = images(2), np.zeros((2, 3, 8, 8), dtype=np.float32)
    with pytest.raises(UsageError, match=r"shape \(2, 3, 8, 8\), Linear takes \(n, 3, 4, 6\)"):
        loop.reconstruct(other, rng=rng(), options=Options())
    with pytest.raises(UsageError, match=r"shapes \(3, 4, 6\) and \(3, 8, 8\)"):
        loop.interpolate(x[0], other[0], num=3, options=Options())
    with pytest.raises(UsageError, match=r"shape \(1, 4, 6\) bool to images of shape \(2, 3, 4, 6\): give \(2, 4, 6\)"):
        loop.inpaint(x, np.zeros((1, *SIZE), dtype=bool), rng=rng(), options=Options())
    with pytest.raises(UsageError, match=r"shape \(2, 3, 8, 8\), Linear takes"):
        loop.attribute(x, other, x, strength=1.0, options=Options())
    with pytest.raises(UsageError, match=r"1 images of an interpolation: .* 2 or more"):
        loop.interpolate(x[0], x[1], num=1, options=Options())
    with pytest.raises(UsageError, match="no image without the attribute"):
        loop.attribute(x, x, x[:0], strength=1.0, options=Options())
    run.rows = run.rows[:3]
    with pytest.raises(UsageError, match=r"latents of shape \(3,\), Linear decodes \(5,\)"):
        loop.reconstruct(x, rng=rng(), options=Options())
