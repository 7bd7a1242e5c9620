"""Principal components: density, dual decomposition, missing pixels, and occluded parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor
from torch.distributions import MultivariateNormal

from anomaly.errors import UsageError
from anomaly.generation.base import Options
from anomaly.samplers.pca import ROUNDING, Pca

RNG = np.random.default_rng


def low_rank(num: int, *, size: int = 16, rank: int = 4, noise: float = 0.005, seed: int = 0) -> Tensor:
    """Images (num, 3, size, size) near a smooth mean and `rank` smooth directions, the same for every seed, in [0, 1]."""
    at = (np.arange(size) + 0.5) / size
    waves = [np.outer(np.cos(np.pi * i * at), np.cos(np.pi * j * at)) for i in range(3) for j in range(3)][1:]
    colours = RNG(99).uniform(0.3, 1.0, (len(waves), 3))
    basis = np.stack([c[:, None, None] * w for c, w in zip(colours, waves, strict=True)])[:rank]
    rng = RNG(seed)
    weight = rng.normal(0, 0.08, (num, rank))
    x = 0.5 + np.tensordot(weight, basis, axes=1) + rng.normal(0, noise, (num, 3, size, size))
    return torch.from_numpy(x.clip(0, 1).astype(np.float32))


def fitted(x: Tensor, **options: Any) -> Pca:
    sampler = Pca(**({"size": x.shape[2], "num_components": 4} | options))
    sampler.learn(x)
    return sampler


@torch.no_grad()
def test_density_equals_that_of_the_full_covariance() -> None:
    x = low_rank(40, size=4, noise=0.05)
    sampler = fitted(x, num_components=3)
    flat = x.flatten(1).double()
    W = (sampler.scale_z[:, None] * sampler.directions.flatten(1)).double().T
    C = W @ W.T + sampler.noise_variance.double() * torch.eye(48)
    expected = MultivariateNormal(flat.mean(dim=0), C).log_prob(flat)
    assert torch.allclose(sampler.log_prob(x).double(), expected, rtol=1e-4)
    assert torch.allclose(sampler.anomaly_map(x).sum(dim=(1, 2)), -sampler.log_prob(x), rtol=1e-5)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(flat.T, correction=0)).flip(0)
    assert sampler.noise_variance.item() == pytest.approx(
        eigenvalues[3:].mean().item(), rel=1e-4
    )  # mean over D - k, not N - k, variances
    assert torch.allclose(sampler.scale_z.double() ** 2 + sampler.noise_variance, eigenvalues[:3], rtol=1e-4)


@torch.no_grad()
def test_components_equal_those_of_the_inner_product_matrix() -> None:
    x = low_rank(12)
    sampler = fitted(x)
    flat = x.flatten(1).double().numpy()
    X = (flat - flat.mean(axis=0)).T  # (D, N)
    eigenvalues, u = np.linalg.eigh(X.T @ X / 12)
    U = (X @ u / np.sqrt(12 * np.maximum(eigenvalues, 1e-12)))[:, ::-1][:, :4]
    library = PCA(4, svd_solver="full").fit(flat).components_
    for directions in (sampler.directions.flatten(1).numpy(), library):
        assert np.allclose(np.abs(directions @ U), np.eye(4), atol=1e-4)


def test_linear_autoencoder_reaches_the_error_of_the_components() -> None:
    x = low_rank(60, size=4, noise=0.04)
    sampler = fitted(x)
    flat = x.flatten(1)
    with torch.no_grad():
        least = ((sampler.decode(sampler.encode(x)).flatten(1) - flat) ** 2).mean().item()
    torch.manual_seed(0)
    encoder, decoder = torch.nn.Linear(48, 4), torch.nn.Linear(4, 48)
    optimizer = torch.optim.LBFGS(
        [*encoder.parameters(), *decoder.parameters()], max_iter=300, line_search_fn="strong_wolfe"
    )

    def descend() -> Tensor:
        optimizer.zero_grad()
        loss = ((decoder(encoder(flat)) - flat) ** 2).mean()
        loss.backward()
        return loss

    optimizer.step(descend)
    loss = descend()
    assert least <= loss.item() < 1.05 * least


@torch.no_grad()
def test_decoded_latents_are_the_orthogonal_projection() -> None:
    x = low_rank(20)
    sampler = fitted(x)
    y = sampler.decode(sampler.encode(x))
    left = (x - y).flatten(1)
    assert (left @ sampler.directions.flatten(1).T).abs().max() < 1e-4
    assert torch.allclose(sampler.decode(sampler.encode(y)), y, atol=1e-5)
    z = sampler.encode(x)
    shrunk = 1 - sampler.noise_variance / (sampler.scale_z**2 + sampler.noise_variance)
    assert torch.allclose((z * z).mean(dim=0), 1 / shrunk, rtol=1e-3)  # z of the training images is N(0, I) plus noise


@torch.no_grad()
def test_missing_pixels_have_the_conditional_mean_and_deviation() -> None:
    sampler = fitted(low_rank(40, size=4, noise=0.05), num_components=3)
    x = low_rank(1, size=4, noise=0.05, seed=7).numpy()
    mask = np.zeros((1, 4, 4), dtype=bool)
    mask[0, 1:3, 1:4] = True
    unknown = np.broadcast_to(mask[:, None], x.shape)[0].reshape(-1)
    W = (sampler.scale_z[:, None] * sampler.directions.flatten(1)).double().numpy().T
    C, mu = W @ W.T + float(sampler.noise_variance) * np.eye(48), sampler.mean.double().numpy().reshape(-1)
    gain = (W @ W.T)[np.ix_(unknown, ~unknown)] @ np.linalg.inv(C[np.ix_(~unknown, ~unknown)])
    expected = mu[unknown] + gain @ (x.reshape(-1)[~unknown] - mu[~unknown])
    loop = sampler.sampling_loop()
    filled = loop.inpaint(x, mask, rng=RNG(0), options=Options(temperature=0.0))
    assert np.allclose(filled.reshape(-1)[unknown], expected, atol=1e-4)
    assert np.array_equal(filled.reshape(-1)[~unknown], x.reshape(-1)[~unknown])
    many = loop.inpaint(
        np.repeat(x, 4000, axis=0), np.repeat(mask, 4000, axis=0), rng=RNG(0), options=Options()
    ).reshape(4000, -1)[:, unknown]
    spread = (W @ W.T)[np.ix_(unknown, unknown)] - gain @ (W @ W.T)[np.ix_(~unknown, unknown)]
    assert np.allclose(many.std(axis=0), np.sqrt(np.diag(spread)), rtol=0.1)


def rebuild(sampler: Pca, hidden: NDArray[np.float32], clean: NDArray[np.float32]) -> float:
    reconstruction = sampler.sampling_loop().reconstruct(hidden, rng=RNG(0), options=Options())
    return float(np.sqrt(((reconstruction - clean) ** 2).mean()))


@torch.no_grad()
@pytest.mark.parametrize("paint", ["grey", "noise", "scattered"])
def test_robust_reconstruction_ignores_overpainted_pixels(paint: str) -> None:
    train, seen = low_rank(60, size=32), low_rank(6, size=32, seed=1).numpy()
    clean, rng = low_rank(6, size=32, seed=1, noise=0.0).numpy(), RNG(3)
    if paint == "scattered":
        at = rng.random((6, 32, 32)) < 0.3
    else:
        at = np.zeros((6, 32, 32), dtype=bool)
        at[:, 6:24, 8:25] = True  # 30 % of the pixels
    assert 0.27 < at.mean() < 0.33
    colour = rng.uniform(0.6, 1.0, seen.shape) if paint == "noise" else np.full(seen.shape, 0.15)
    hidden = np.where(at[:, None], colour, seen).astype(np.float32)
    plain, robust = fitted(train), fitted(train, robust=True)
    assert robust.loop_settings()["robust"]
    assert rebuild(robust, hidden, clean) < 0.5 * rebuild(plain, hidden, clean)
    assert rebuild(robust, hidden, clean) < 0.002
    assert rebuild(robust, seen, clean) < 0.002
    missing = plain.sampling_loop().inpaint(hidden, at, rng=RNG(0), options=Options(temperature=0.0))
    assert np.sqrt(((missing - clean) ** 2)[np.broadcast_to(at[:, None], clean.shape)].mean()) < 0.002


@torch.no_grad()
def test_samples_have_the_moments_of_the_model() -> None:
    sampler = fitted(low_rank(60))
    drawn = sampler.sampling_loop().sample(4000, rng=RNG(0), options=Options())
    assert np.array_equal(drawn[:3], sampler.sampling_loop().sample(4000, rng=RNG(0), options=Options())[:3])
    assert np.allclose(drawn.mean(axis=0), sampler.mean, atol=0.01)
    deviation = (sampler.scale_z[:, None, None, None] * sampler.directions).square().sum(dim=0).sqrt()
    assert np.allclose(drawn.std(axis=0), deviation, atol=0.01)


@torch.no_grad()
def test_density_uses_only_the_region_of_interest() -> None:
    x = low_rank(20)
    roi = torch.zeros(16, 16, dtype=torch.bool)
    roi[2:9, 3:12] = True
    sampler = Pca(size=16, num_components=4)
    sampler.preprocess.roi.copy_(roi)
    sampler.preprocess._update_flags()
    sampler.learn(x * roi)
    inside = x[:, :, roi].flatten(1).double()
    U = sampler.directions[:, :, roi].flatten(1).double()
    W = (sampler.scale_z.double()[:, None] * U).T
    C = W @ W.T + sampler.noise_variance.double() * torch.eye(inside.shape[1])
    expected = MultivariateNormal(inside.mean(dim=0), C).log_prob(inside)
    assert torch.allclose(sampler.log_prob(x * roi).double(), expected, rtol=1e-4)
    assert not sampler.anomaly_map(x * roi)[:, ~roi].any()
    robust = sampler.sampling_loop().robust((x[:2] * roi).numpy(), rng=RNG(0))  # type: ignore[attr-defined]
    assert np.abs(robust - (x[:2] * roi).numpy()).max() < 0.05


def test_equal_directions_keep_the_noise_of_rounding() -> None:
    sampler = fitted(low_rank(2).repeat(4, 1, 1, 1))
    assert sampler.noise_variance.item() == pytest.approx(ROUNDING)
    assert torch.isfinite(sampler.log_prob(low_rank(3))).all()
    assert torch.isfinite(sampler.encode(low_rank(3))).all()
    with pytest.raises(UsageError, match="the 8 images are equal"):
        fitted(low_rank(1).expand(8, -1, -1, -1))


def test_invalid_input_is_refused() -> None:
    with pytest.raises(UsageError, match="4 images of 768 values cannot give 4 components: set num_components to 3"):
        fitted(low_rank(4))
    with pytest.raises(UsageError, match="num_components 0: "):
        Pca(num_components=0)
    loop = fitted(low_rank(8)).sampling_loop()
    with pytest.raises(UsageError, match="mask of shape"):
        loop.inpaint(low_rank(1).numpy(), np.zeros((1, 3, 3), dtype=bool), rng=RNG(0), options=Options())
    with pytest.raises(UsageError, match="resize them first"):
        loop.robust(np.zeros((1, 3, 8, 8), dtype=np.float32), rng=RNG(0))  # type: ignore[attr-defined]
