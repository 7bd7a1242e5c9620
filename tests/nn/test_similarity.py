"""SSIM and gradient similarity against reference values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anomaly.nn.similarity import GradientSimilarity, Ssim


def test_ssim_equals_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (40, 52, 3)).astype(np.float32)
    y = np.clip(0.7 * x + 0.1 + rng.normal(0, 0.2, x.shape), 0, 1).astype(np.float32)
    expected = metrics.structural_similarity(
        x, y, data_range=1.0, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )[1].mean(axis=2)
    output = Ssim()(*(torch.from_numpy(a).permute(2, 0, 1)[None] for a in (x, y)))[0].numpy()
    assert output.shape == (40, 52)
    assert np.abs(output - expected)[5:-5, 5:-5].max() < 1e-4


def test_similarity_is_symmetric_and_1_for_equal_images() -> None:
    x, y = torch.rand(2, 2, 3, 32, 48)
    for measure in (Ssim(), GradientSimilarity()):
        assert torch.allclose(measure(x, x), torch.ones(2, 32, 48), atol=1e-5)
        assert torch.allclose(measure(x, y), measure(y, x), atol=1e-5)
        assert measure(x, y).mean() < 0.9


def test_gradient_similarity_of_a_ramp_and_a_plane() -> None:
    slope, c = 0.02, 0.0026
    ramp = (slope * torch.arange(32.0)).expand(1, 3, 32, 32)
    plane = torch.full((1, 3, 32, 32), 0.3)

    def expected(step: float) -> float:  # the gradient of a ramp is the difference over two pixels
        squared = (2 * step) ** 2 + 1e-6
        return (2 * squared**0.5 * 1e-3 + c) / (squared + 1e-6 + c)

    one = GradientSimilarity(num_scales=1)(ramp, plane)
    assert one[0, 16, 16].item() == pytest.approx(expected(slope), abs=1e-4)
    two = GradientSimilarity(num_scales=2)(ramp, plane)
    assert two[0, 16, 16].item() == pytest.approx((expected(slope) + expected(2 * slope)) / 2, abs=1e-4)
