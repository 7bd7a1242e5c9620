"""Mixture of Gaussians over patches: exact density, moments of samples, and the conditional under a mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from anomaly.errors import Unsupported, UsageError
from anomaly.generation.base import Options
from anomaly.samplers.gmm import Gmm

RNG = np.random.default_rng


def stripes(num: int, *, size: int = 4, seed: int = 0) -> Tensor:
    """Draw images (num, 3, size, size), bright on the left, one of two colours on the right, with noise."""
    rng = RNG(seed)
    x = np.full((num, 3, size, size), 0.75)
    colour = np.where(rng.random((num, 1)) < 0.3, [[0.2, 0.3, 0.5]], [[0.4, 0.25, 0.2]])
    x[:, :, :, size // 2 :] = colour[:, :, None, None]
    return torch.from_numpy((x + rng.normal(0, 0.04, x.shape)).astype(np.float32))


def fitted(**options: Any) -> Gmm:
    sampler = Gmm(**({"size": 4, "patch": 2, "num_gaussians": 3, "dimensions": 5} | options))
    sampler.learn(stripes(120, size=sampler.preprocess.size[0]))
    return sampler


def whole(sampler: Gmm, cell: int) -> MixtureSameFamily:
    """Distribution of a cell's patch with full covariances in all D dimensions."""
    U = sampler.directions.double()
    D, s2 = U.shape[1], sampler.noise_variance.double()
    factors = sampler.factors.double()
    outer = s2 * (torch.eye(D) - U.T @ U)
    covariance = U.T @ (factors @ factors.transpose(1, 2)) @ U + outer
    means = sampler.mean.double() + sampler.centres.double() @ U
    weights = sampler.log_weight[cell].double().exp()
    return MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covariance + 1e-12 * torch.eye(D)))


@torch.no_grad()
@pytest.mark.parametrize("dimensions", [5, 12])
def test_density_is_the_product_over_cells_of_the_full_mixture(dimensions: int) -> None:
    sampler = fitted(dimensions=dimensions)
    x = stripes(6, seed=1)
    y = sampler._patches(x)
    assert torch.equal(sampler._images(y), x)
    assert torch.equal(y[0, 1], x[0, :, :2, 2:].flatten())
    expected = sum(whole(sampler, cell).log_prob(y[:, cell].double()) for cell in range(4))
    assert torch.allclose(sampler.log_prob(x).double(), expected, rtol=1e-4)  # type: ignore[arg-type]
    assert torch.allclose(sampler.anomaly_map(x).sum(dim=(1, 2)), -sampler.log_prob(x), rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_density_integrates_to_one(dimensions: int) -> None:
    sampler = fitted(size=2, patch=1, dimensions=dimensions, num_gaussians=2)
    step = 0.0125
    at = torch.arange(-0.25, 1.25, step)
    grid = torch.cartesian_prod(at, at, at)  # values of one 1×1 patch
    for cell in (0, 3):
        total = 0.0
        for y in grid.split(200_000):
            joint, r = sampler._joint(y[:, None].expand(-1, 4, -1))
            inside = torch.logsumexp(joint[:, cell], dim=1)
            left = 3 - dimensions
            outside = -0.5 * (r[:, cell].square().sum(dim=1) / sampler.noise_variance)
            outside = outside - 0.5 * left * torch.log(2 * torch.pi * sampler.noise_variance)
            total += float((inside + outside).exp().double().sum()) * step**3
        assert total == pytest.approx(1, abs=0.01)


@torch.no_grad()
def test_samples_have_the_moments_of_the_mixture() -> None:
    sampler = fitted()
    loop = sampler.sampling_loop()
    drawn = loop.sample(6000, rng=RNG(0), options=Options())
    assert np.array_equal(drawn[:2], loop.sample(6000, rng=RNG(0), options=Options())[:2])
    y = sampler._patches(torch.from_numpy(drawn)).double()
    for cell in range(4):
        cell_of = whole(sampler, cell)
        assert torch.allclose(y[:, cell].mean(dim=0), cell_of.mean, atol=0.01)
        assert torch.allclose(y[:, cell].var(dim=0), cell_of.variance, atol=2e-3)
    mean = loop.sample(500, rng=RNG(1), options=Options(temperature=0.0))
    near = torch.cdist(sampler._patches(torch.from_numpy(mean)), sampler.mean + sampler.centres @ sampler.directions)
    assert near.amin(dim=2).max() < 1e-4  # at temperature 0 each patch is the mean of a Gaussian


@torch.no_grad()
def test_weights_depend_on_the_position() -> None:
    sampler = fitted()
    x = stripes(400, seed=3)
    drawn = sampler.sampling_loop().sample(400, rng=RNG(0), options=Options())
    for part in (x.numpy(), drawn):
        assert (part[:, :, :, :2].mean(axis=(1, 2, 3)) > 0.6).mean() > 0.98
        assert (part[:, :, :, 2:].mean(axis=(1, 2, 3)) < 0.5).mean() > 0.98
    mirrored = x.flip(3)
    assert (sampler.log_prob(mirrored) < sampler.log_prob(x)).all()


@torch.no_grad()
def test_unknown_pixels_are_drawn_from_the_conditional() -> None:
    sampler = fitted()
    x, mask = stripes(1, seed=5).numpy(), np.zeros((1, 4, 4), dtype=bool)
    mask[0, 0, 3] = mask[0, 2:, 2:] = True  # one pixel of the second cell, and the whole fourth cell
    num = 3000
    drawn = sampler.sampling_loop().inpaint(
        np.repeat(x, num, axis=0), np.repeat(mask, num, axis=0), rng=RNG(0), options=Options()
    )
    kept = np.broadcast_to(~mask[:, None], (num, 3, 4, 4))
    assert np.array_equal(drawn[kept], np.repeat(x, num, axis=0)[kept])
    y, found = sampler._patches(torch.from_numpy(x))[0].double(), sampler._patches(torch.from_numpy(drawn)).double()
    assert torch.allclose(found[:, 3].mean(dim=0), whole(sampler, 3).mean, atol=0.015)
    known = torch.ones(12, dtype=torch.bool)
    known[[1, 5, 9]] = False
    mixture: Any = whole(sampler, 1)
    C, means = mixture.component_distribution.covariance_matrix, mixture.component_distribution.loc
    seen = MultivariateNormal(means[:, known], C[:, known][:, :, known])
    share = torch.softmax(mixture.mixture_distribution.logits + seen.log_prob(y[1, known]), dim=0)
    gain = C[:, ~known][:, :, known] @ torch.linalg.inv(C[:, known][:, :, known])
    mean = means[:, ~known] + (gain @ (y[1, known] - means[:, known])[:, :, None])[:, :, 0]
    left = C[:, ~known][:, :, ~known] - gain @ C[:, known][:, :, ~known]
    assert torch.allclose(found[:, 1, ~known].mean(dim=0), share @ mean, atol=5e-3)
    best = int(share.argmax())
    assert share[best] > 0.99
    deviation = torch.diagonal(left[best]).sqrt()
    assert torch.allclose(found[:, 1, ~known].std(dim=0), deviation, rtol=0.1)


@torch.no_grad()
def test_density_uses_the_cells_with_a_pixel_in_the_region() -> None:
    sampler = Gmm(size=4, patch=2, num_gaussians=2, dimensions=3)
    sampler.preprocess.roi[:, 3] = False
    sampler.preprocess.roi[:2] = False
    sampler.preprocess._update_flags()
    x = stripes(60) * sampler.preprocess.roi
    sampler.learn(x)
    anomaly_map = sampler.anomaly_map(x)
    assert not anomaly_map[:, ~sampler.preprocess.roi].any()
    y = sampler._patches(x).double()
    expected = whole(sampler, 2).log_prob(y[:, 2]) + whole(sampler, 3).log_prob(y[:, 3])
    assert torch.allclose(-anomaly_map.sum(dim=(1, 2)).double(), expected, rtol=1e-4, atol=1e-3)
    drawn = sampler.sampling_loop().sample(5, rng=RNG(0), options=Options())
    assert not drawn[:, :, :2].any()
    assert (drawn[:, :, 2:, :2] > 0.4).all()


def test_invalid_options_are_refused() -> None:
    with pytest.raises(UsageError, match=r"patch 64: a whole image of size 64 has 12288 dimensions.*e.g. patch 8"):
        Gmm(size=64, patch=64)
    for option, value in (("patch", 7), ("dimensions", 200), ("dimensions", 0), ("num_gaussians", 0)):
        with pytest.raises(UsageError, match=f"{option} {value}: "):
            Gmm(**{option: value})
    with pytest.raises(UsageError, match="8 patches cannot fit 5 Gaussians: set num_gaussians to 4"):
        Gmm(size=4, patch=2, num_gaussians=5, dimensions=2).learn(stripes(2))


def test_unsupported_abilities_and_invalid_input_are_refused() -> None:
    loop, x = fitted().sampling_loop(), stripes(2).numpy()
    with pytest.raises(Unsupported, match=r"Gmm does not support reconstruct: .*take pca or vae"):
        loop.reconstruct(x, rng=RNG(0), options=Options())
    with pytest.raises(Unsupported, match=r"Gmm does not support interpolate: .*choice"):
        loop.interpolate(x[0], x[1], num=3, options=Options())
    with pytest.raises(UsageError, match="mask of shape"):
        loop.inpaint(x, np.zeros((2, 3, 3), dtype=bool), rng=RNG(0), options=Options())
    with pytest.raises(UsageError, match="temperature -1"):
        loop.sample(1, rng=RNG(0), options=Options(temperature=-1.0))
