"""Drawing with a decoder: reproducible samples, walks and directions in the latent, inpainting, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anomaly.errors import Unsupported, UsageError
from anomaly.generation import sampling_loop_class
from anomaly.generation.base import SamplerInfo, Options
from anomaly.generation.decoder import DecoderLoop

SIZE, LATENT = (4, 6), 5


class Linear:
    """An autoencoder that can be followed by hand: images are 0.5 + z A, with orthonormal rows of A."""

    def __init__(self) -> None:
        values = np.random.default_rng(7).standard_normal((3 * SIZE[0] * SIZE[1], LATENT))
        self.rows = np.linalg.qr(values)[0].T.astype(np.float32)
        self.calls: list[str] = []

    def __call__(self, function: str, *inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.calls.append(function)
        (given,) = inputs
        assert given.dtype == np.float32
        if function == "encode":
            return (given.reshape(len(given), -1) - np.float32(0.5)) @ self.rows.T
        return (np.float32(0.5) + given @ self.rows).reshape(-1, 3, *SIZE)


def build_loop(*, unsupported: dict[str, str] | None = None, **settings: Any) -> tuple[DecoderLoop, Linear]:
    call = Linear()
    info = SamplerInfo(sampler="Linear", size=list(SIZE), latent_shape=[LATENT], unsupported=unsupported or {}, settings=settings)
    return DecoderLoop(call, info), call


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def images(num: int, *, seed: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Images that the autoencoder rebuilds."""
    z = 0.3 * rng(seed).standard_normal((num, LATENT)).astype(np.float32)
    return Linear()("decode", z)


def test_registry_finds_it() -> None:
    assert sampling_loop_class("decoder") is DecoderLoop


def test_samples_follow_from_the_seed_and_the_temperature() -> None:
    loop, call = build_loop()
    first = loop.sample(3, rng=rng(), options=Options())
    assert first.shape == (3, 3, *SIZE)
    assert first.dtype == np.float32
    assert np.array_equal(first, loop.sample(3, rng=rng(), options=Options()))
    assert not np.array_equal(first, loop.sample(3, rng=rng(1), options=Options()))
    z = rng().standard_normal((3, LATENT), dtype=np.float32)
    halved = loop.sample(3, rng=rng(), options=Options(temperature=0.5))
    np.testing.assert_allclose(halved, np.clip(call("decode", 0.5 * z), 0, 1), atol=1e-6)
    np.testing.assert_allclose(loop.sample(2, rng=rng(), options=Options(temperature=0.0)), 0.5)
    wide = loop.sample(50, rng=rng(), options=Options(temperature=9.0))
    assert wide.min() == 0  # cut off, not scaled
    assert wide.max() == 1


@pytest.mark.parametrize("temperature", [-0.5, float("nan")])
def test_a_temperature_that_is_no_deviation_is_refused(temperature: float) -> None:
    with pytest.raises(UsageError, match=f"temperature {temperature}: .* give 0 or more"):
        build_loop()[0].sample(1, rng=rng(), options=Options(temperature=temperature))


def test_reconstruction_is_the_projection() -> None:
    loop, _ = build_loop()
    x = images(4)
    np.testing.assert_allclose(loop.reconstruct(x, rng=rng(), options=Options()), x, atol=1e-5)
    off = x + 0.05 * rng(3).standard_normal(x.shape).astype(np.float32)
    back = loop.reconstruct(off, rng=rng(), options=Options())
    assert np.abs(back - x).mean() < 0.5 * np.abs(off - x).mean()


def test_interpolation_walks_straight_from_end_to_end() -> None:
    loop, _ = build_loop()
    a, b = images(2)
    walk = loop.interpolate(a, b, num=5, options=Options())
    assert walk.shape == (5, 3, *SIZE)
    np.testing.assert_allclose(walk[[0, -1]], [a, b], atol=1e-5)
    np.testing.assert_allclose(walk[1], 0.75 * a + 0.25 * b, atol=1e-5)


def test_spherical_interpolation_keeps_the_radius() -> None:
    loop, call = build_loop(path="spherical")
    a, b = images(2)
    za, zb = call("encode", np.stack((a, b)))
    b = call("decode", (zb * np.linalg.norm(za) / np.linalg.norm(zb))[None])[0]
    walk = loop.interpolate(a, b, num=7, options=Options())
    np.testing.assert_allclose(walk[[0, -1]], [a, b], atol=1e-5)
    z = call("encode", walk)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), np.linalg.norm(za), rtol=1e-4)
    steps = (z[1:] * z[:-1]).sum(axis=1)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)  # equal angles
    still = loop.interpolate(a, a, num=3, options=Options())  # no arc between parallel latents
    np.testing.assert_allclose(still, np.stack((a, a, a)), atol=1e-5)


def test_inpainting_leaves_known_pixels_and_finds_the_hidden_ones() -> None:
    loop, _ = build_loop()
    x = images(3)
    mask = np.zeros((3, *SIZE), dtype=bool)
    mask[0, :2, :2] = mask[1, 1, 1:3] = True  # the third image is known
    broken = np.where(mask[:, None], np.float32(1.0), x)
    drawn = loop.inpaint(broken, mask, rng=rng(), options=Options())
    known = np.broadcast_to(~mask[:, None], x.shape)
    assert drawn.dtype == np.float32
    assert np.array_equal(drawn[known], x[known])
    assert np.abs(drawn - x).max() < 0.05
    start = np.where(mask[:, None], loop.sample(3, rng=rng(), options=Options()), x)
    assert np.abs(drawn - x).max() < 0.2 * np.abs(start - x).max()
    garbage = np.where(mask[:, None], np.float32(0.0), x)  # what lies under the mask is not looked at
    assert np.array_equal(drawn, loop.inpaint(garbage, mask, rng=rng(), options=Options()))


def test_attribute_moves_by_the_difference_of_the_means() -> None:
    loop, call = build_loop()
    x, present, absent = images(2), images(3, seed=5), images(4, seed=6)
    direction = call("encode", present).mean(axis=0) - call("encode", absent).mean(axis=0)
    moved = loop.attribute(x, present, absent, strength=0.5, options=Options())
    expected = np.clip(call("decode", call("encode", x) + 0.5 * direction), 0, 1)
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    np.testing.assert_allclose(loop.attribute(x, present, absent, strength=0.0, options=Options()), x, atol=1e-5)


def test_what_a_sampler_lacks_is_refused_before_anything_runs() -> None:
    x, mask = images(1), np.zeros((1, *SIZE), dtype=bool)
    arguments: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "sample": ((1,), {"rng": rng()}),
        "reconstruct": ((x,), {"rng": rng()}),
        "interpolate": ((x[0], x[0]), {"num": 2}),
        "inpaint": ((x, mask), {"rng": rng()}),
        "attribute": ((x, x, x), {"strength": 1.0}),
    }
    loop, call = build_loop(unsupported={ability: f"no {ability} in the paper" for ability in arguments})
    for ability, (given, named) in arguments.items():
        with pytest.raises(Unsupported, match=f"Linear has no {ability}: no {ability} in the paper"):
            getattr(loop, ability)(*given, **named, options=Options())
    assert not call.calls
    without_encoder, _ = build_loop(unsupported={"encode": "there is a generator only"})
    with pytest.raises(Unsupported, match="Linear has no encode: there is a generator only"):
        without_encoder.reconstruct(x, rng=rng(), options=Options())


def test_shapes_that_do_not_fit_are_named_on_both_sides() -> None:
    loop, call = build_loop()
    x, other = images(2), np.zeros((2, 3, 8, 8), dtype=np.float32)
    with pytest.raises(UsageError, match=r"shape \(2, 3, 8, 8\), Linear takes \(n, 3, 4, 6\)"):
        loop.reconstruct(other, rng=rng(), options=Options())
    with pytest.raises(UsageError, match=r"shapes \(3, 4, 6\) and \(3, 8, 8\)"):
        loop.interpolate(x[0], other[0], num=3, options=Options())
    with pytest.raises(UsageError, match=r"shape \(1, 4, 6\) to images of shape \(2, 3, 4, 6\): give \(2, 4, 6\)"):
        loop.inpaint(x, np.zeros((1, *SIZE), dtype=bool), rng=rng(), options=Options())
    with pytest.raises(UsageError, match=r"shape \(2, 3, 8, 8\), Linear takes"):
        loop.attribute(x, other, x, strength=1.0, options=Options())
    with pytest.raises(UsageError, match=r"1 images on the way: .* at least 2"):
        loop.interpolate(x[0], x[1], num=1, options=Options())
    with pytest.raises(UsageError, match="no image without the attribute"):
        loop.attribute(x, x, x[:0], strength=1.0, options=Options())
    call.rows = call.rows[:3]
    with pytest.raises(UsageError, match=r"latents of shape \(3,\), Linear decodes \(5,\)"):
        loop.reconstruct(x, rng=rng(), options=Options())
