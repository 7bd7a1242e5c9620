"""Variational autoencoder: bound against the exact density of a linear-Gaussian model, prior, and anomaly map."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence
from torch.utils.data import DataLoader

from anomaly.errors import UsageError
from anomaly.generation.base import Options
from anomaly.samplers import vae
from anomaly.samplers.vae import Vae, expected_log_likelihood
from anomaly.testing.toy_training import as_batch, draw_parts

pytestmark = pytest.mark.filterwarnings("ignore::Warning:pytorch_lightning")
TINY: dict[str, Any] = {"size": 16, "width": 8, "latent": 4, "epochs": 3, "batch_size": 8, "smooth": 3}


def trained(*, roi: Tensor | None = None, **options: Any) -> Vae:
    torch.manual_seed(0)
    sampler = Vae(**(TINY | options))
    if roi is not None:
        sampler.preprocess.set_roi(roi)
    batches = [as_batch(part, name=str(n)) for n, part in enumerate(draw_parts(16, seed=0).split(8))]
    trainer = pl.Trainer(
        max_epochs=sampler.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(sampler, DataLoader(batches, batch_size=None))
    return sampler.eval()


def linear_gaussian() -> tuple[Tensor, Tensor, float]:
    """Decoder W (5, 2) with orthogonal columns, offset (5,) and s2; the posterior of x = W z + b + noise is diagonal."""
    generator = torch.Generator().manual_seed(1)
    W = torch.linalg.qr(torch.randn(5, 2, generator=generator, dtype=torch.float64))[0] * torch.tensor([2.0, 0.5])
    return W, torch.randn(5, generator=generator, dtype=torch.float64), 0.3


def bound(x: Tensor, mu: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    W, b, s2 = linear_gaussian()
    log_s2 = torch.tensor(math.log(s2), dtype=torch.float64)

    def decode(z: Tensor) -> Tensor:
        return z @ W.T + b

    with torch.no_grad():
        likelihood = 0.0
        for part in noise.split(500):  # the rounding of float32 is not tested here
            likelihood = likelihood + len(part) * expected_log_likelihood(
                x, mu, log_variance, decode=decode, noise=part, log_s2=log_s2
            )
    kl = vae.kl_divergence(mu, log_variance, m=torch.zeros_like(mu[0]), root=torch.eye(2, dtype=torch.float64))
    return (likelihood / len(noise)).sum(dim=1) - kl  # type: ignore[union-attr]


def test_bound_is_below_the_exact_value_and_equals_it_at_the_posterior() -> None:
    W, b, s2 = linear_gaussian()
    exact = MultivariateNormal(b, W @ W.T + s2 * torch.eye(5, dtype=torch.float64))
    x = exact.sample((6,))
    precision = torch.eye(2, dtype=torch.float64) + W.T @ W / s2
    mu = (x - b) @ W / s2 @ torch.linalg.inv(precision)
    log_variance = -torch.diagonal(precision).log().expand_as(mu)
    half = torch.randn(1000, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.cat((half, -half))
    at_posterior = bound(x, mu, log_variance, noise)
    assert torch.allclose(at_posterior, exact.log_prob(x), atol=0.05)
    for shift, widening in ((0.5, 0.0), (0.0, 1.0), (0.0, -1.0), (-0.3, 0.5)):
        posterior = MultivariateNormal(mu, torch.linalg.inv(precision))
        q = MultivariateNormal(mu + shift, torch.diag_embed((log_variance + widening).exp()))
        lower = bound(x, mu + shift, log_variance + widening, noise)
        assert (lower < exact.log_prob(x)).all()
        assert torch.allclose(exact.log_prob(x) - lower, kl_divergence(q, posterior), atol=0.1)  # gap of the bound


def test_few_fixed_noise_values_estimate_the_bound_without_bias() -> None:
    W, b, s2 = linear_gaussian()
    x, mu, log_variance = b[None] + 0.3, torch.full((1, 2), 0.2).double(), torch.full((1, 2), -1.0).double()
    squares = ((x - b - mu @ W.T) ** 2).sum() + (W * W @ log_variance[0].exp()).sum()
    kl = vae.kl_divergence(mu, log_variance, m=torch.zeros_like(mu[0]), root=torch.eye(2).double())
    exact = -0.5 * (squares / s2 + 5 * math.log(2 * math.pi * s2)) - kl
    drawn = []
    for seed in range(1000):
        half = torch.randn(2, 1, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        drawn.append(bound(x, mu, log_variance, torch.cat((half, -half))))
    error = torch.stack(drawn).std() / math.sqrt(1000)
    assert abs(torch.stack(drawn).mean() - exact) < 3 * error


def test_divergence_from_a_full_prior_equals_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    mu, log_variance, m = (torch.randn(n, 3, generator=generator).double() for n in (4, 4, 1))
    L = torch.tril(torch.rand(3, 3, generator=generator).double()) + torch.eye(3)
    expected = kl_divergence(
        MultivariateNormal(mu, torch.diag_embed(log_variance.exp())), MultivariateNormal(m[0], scale_tril=L)
    )
    assert torch.allclose(vae.kl_divergence(mu, log_variance, m=m[0], root=torch.linalg.inv(L)), expected)


@torch.no_grad()
def test_map_sums_to_minus_the_bound_inside_the_region() -> None:
    roi = torch.zeros(72, 88, dtype=torch.bool)
    roi[20:60, 10:70] = True
    for region in (None, roi):
        sampler = trained(roi=region)
        x = sampler.preprocess(draw_parts(3, seed=5))
        assert torch.allclose(sampler.anomaly_map(x).sum(dim=(1, 2)), -sampler.log_prob(x))
        assert not sampler.anomaly_map(x)[:, ~sampler.preprocess.roi].any()
        assert not sampler.decode(torch.randn(2, 4)).mul(~sampler.preprocess.roi).any()
        assert torch.equal(sampler.log_prob(x), sampler.log_prob(x))


@torch.no_grad()
def test_latents_of_training_images_have_the_moments_of_the_prior() -> None:
    sampler = trained()
    x = sampler.preprocess(draw_parts(16, seed=0))
    code, log_variance = sampler._posterior(x)
    assert torch.allclose(sampler.encode(x).mean(dim=0), torch.zeros(4), atol=1e-4)
    covariance = torch.cov(sampler.encode(x).T, correction=0)
    around = sampler.prior_root @ torch.diag(log_variance.exp().mean(dim=0)) @ sampler.prior_root.T
    assert torch.allclose(covariance + around, torch.eye(4), atol=1e-3)
    assert torch.allclose(sampler.decode(sampler.encode(x)), sampler._decoded(code), atol=1e-5)
    fitted = sampler.log_prob(x).mean()
    sampler.prior_mean.zero_(), sampler.prior_root.copy_(torch.eye(4))
    assert sampler.log_prob(x).mean() < fitted  # the fitted prior raises the bound


@torch.no_grad()
def test_sampling_depends_on_the_seed_and_keeps_ends_and_known_pixels() -> None:
    sampler = trained()
    loop, options = sampler.sampling_loop(), Options()
    drawn = [loop.sample(3, rng=np.random.default_rng(seed), options=options) for seed in (0, 0, 1)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    x = sampler.preprocess(draw_parts(2, seed=5)).numpy()
    rebuilt = loop.reconstruct(x, rng=np.random.default_rng(0), options=options)
    way = loop.interpolate(x[0], x[1], num=5, options=options)
    assert np.allclose(way[[0, 4]], rebuilt, atol=1e-5)
    mask = np.zeros((2, 16, 16), dtype=bool)
    mask[:, 4:9, 4:9] = True
    filled = loop.inpaint(x, mask, rng=np.random.default_rng(0), options=options)
    kept = np.broadcast_to(~mask[:, None], x.shape)
    assert np.array_equal(filled[kept], x[kept])
    moved = loop.attribute(x, x[:1], x[1:], strength=0.0, options=options)
    assert np.allclose(moved, rebuilt, atol=1e-5)


def test_beta_weights_the_divergence() -> None:
    loose, tight = (trained(beta=beta, epochs=8, learning_rate=5e-3) for beta in (0.01, 100.0))
    with torch.no_grad():
        x = loose.preprocess(draw_parts(16, seed=0))
        divergence = []
        for sampler in (loose, tight):
            mu, log_variance = sampler._posterior(x)
            m, root = torch.zeros(4), torch.eye(4)
            divergence.append(vae.kl_divergence(mu, log_variance, m=m, root=root).mean().item())
    assert divergence[1] < 0.5 * divergence[0]


@pytest.mark.parametrize(("option", "value"), [("size", 40), ("num_noise", 3), ("num_noise", 0), ("smooth", 4)])
def test_invalid_options_are_refused(option: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"{option} {value}: .*e.g. "):
        Vae(**{option: value})
