from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from functools import partial

import cv2
import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from anomaly.errors import DataError, UsageError
from anomaly.metrics import Interval, PixelMetrics, pixel_bootstrap, pixel_level, pixel_metrics
from anomaly.metrics.intervals import resample_weights
from anomaly.metrics.pixel_level import Images

Pixels = tuple[NDArray[np.float32], NDArray[np.bool_]]


def draw(num_images: int, *, seed: int, size: int, num_levels: float) -> list[Pixels]:
    """Draw maps of several shapes with many ties (few levels) or almost none (many levels); every third image is good."""
    rng = np.random.default_rng(seed)
    images = []
    for index in range(num_images):
        noise = rng.standard_normal((size, size + index % 2), dtype=np.float32)
        mask = np.zeros(noise.shape, np.bool_)
        if index % 3:
            mask = cv2.GaussianBlur(rng.standard_normal(noise.shape), (5, 5), 0) > 0.35
        levels = np.round((noise + rng.random() * mask) * num_levels) / num_levels
        images.append((levels.astype(np.float32), mask))
    return images


def repeatable(images: Sequence[Pixels]) -> Images:
    return lambda: iter(images)


def trapezoid(y: ArrayLike, x: ArrayLike) -> float:
    y = np.asarray(y)
    return float(np.diff(x) @ (y[1:] + y[:-1]) / 2)


def brute_force(images: list[Pixels], *, limits: tuple[float, ...]) -> dict[str, float]:
    """Compute every metric from its definition, at every distinct pixel value."""
    values = np.concatenate([anomaly_map.ravel() for anomaly_map, _ in images])
    is_defect = np.concatenate([mask.ravel() for _, mask in images])
    regions = []
    for anomaly_map, mask in images:
        num_labels, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        regions += [anomaly_map[labels == label] for label in range(1, num_labels)]
    fpr, tpr, pro, precision = [0.0], [0.0], [0.0], [1.0]
    for threshold in np.unique(values)[::-1]:
        selected = values >= threshold
        fpr.append(float(selected[~is_defect].mean()))
        tpr.append(float(selected[is_defect].mean()))
        precision.append(float(is_defect[selected].mean()))
        pro.append(float(np.mean([(region >= threshold).mean() for region in regions])))
    f1 = [2 * p * r / (p + r) for p, r in zip(precision, tpr, strict=True) if p + r]
    result = {
        "auroc": trapezoid(tpr, fpr),
        "average_precision": float(np.diff(tpr) @ precision[1:]),
        "f1_max": max(f1),
    }
    for limit in limits:
        last = np.searchsorted(fpr, limit, side="right")
        x = np.append(fpr[:last], limit)
        y = np.append(pro[:last], pro[-1])
        if last < len(fpr):
            slope = (pro[last] - pro[last - 1]) / (fpr[last] - fpr[last - 1])
            y[-1] = pro[last - 1] + slope * (limit - fpr[last - 1])
        result[f"aupro {limit}"] = trapezoid(y, x) / limit
    return result


def values_of(metrics: PixelMetrics) -> dict[str, float]:
    aupro = {f"aupro {limit}": estimate.value for limit, estimate in metrics.aupro.items()}
    return {
        "auroc": metrics.auroc.value,
        "average_precision": metrics.average_precision.value,
        "f1_max": metrics.f1_max.value,
        **aupro,
    }


def intervals_of(metrics: PixelMetrics) -> list[Interval]:
    estimates = [metrics.auroc, metrics.average_precision, metrics.f1_max, *metrics.aupro.values()]
    return [estimate.interval for estimate in estimates]


@pytest.mark.parametrize("num_levels", [0.5, 2, 10, 1e6])
@pytest.mark.parametrize("seed", range(4))
def test_values_agree_with_brute_force(seed: int, num_levels: float) -> None:
    images = draw(5, seed=seed, size=9, num_levels=num_levels)
    limits = (1.0, 0.3, 0.05, 0.001)
    metrics = pixel_metrics(repeatable(images), limits=limits, seed=0, num_resamples=2)
    assert values_of(metrics) == pytest.approx(brute_force(images, limits=limits), abs=1e-12)
    is_defect = np.concatenate([mask.ravel() for _, mask in images])
    assert (metrics.num_images, metrics.num_normal, metrics.num_defect) == (5, (~is_defect).sum(), is_defect.sum())
    selected = np.concatenate([anomaly_map.ravel() for anomaly_map, _ in images]) >= metrics.f1_threshold
    f1 = 2 * (selected & is_defect).sum() / (selected.sum() + is_defect.sum())
    assert f1 == pytest.approx(metrics.f1_max.value, abs=1e-12)


@pytest.mark.parametrize("num_levels", [2, 1e6])
def test_auroc_and_average_precision_agree_with_scikit_learn(num_levels: float) -> None:
    oracle = pytest.importorskip("sklearn.metrics")
    images = draw(6, seed=5, size=40, num_levels=num_levels)
    metrics = pixel_metrics(repeatable(images), seed=0, num_resamples=2)
    labels = np.concatenate([mask.ravel() for _, mask in images])
    scores = np.concatenate([anomaly_map.ravel() for anomaly_map, _ in images])
    assert metrics.auroc.value == pytest.approx(oracle.roc_auc_score(labels, scores), abs=1e-12)
    assert metrics.average_precision.value == pytest.approx(oracle.average_precision_score(labels, scores), abs=1e-12)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_levels", [2, 1e6])
@pytest.mark.parametrize("limit", [0.3, 0.05])
def test_aupro_agrees_with_anomalib(limit: float, num_levels: float) -> None:
    oracle = pytest.importorskip("anomalib.metrics.aupro")
    torch = pytest.importorskip("torch")
    images = [(m[:, :24], mask[:, :24]) for m, mask in draw(6, seed=2, size=24, num_levels=num_levels)]
    metric = oracle._AUPRO(fpr_limit=limit)
    for anomaly_map, mask in images:
        metric.update(torch.tensor(anomaly_map)[None], torch.tensor(mask)[None].int())
    metrics = pixel_metrics(repeatable(images), limits=[limit], seed=0, num_resamples=2)
    assert metrics.aupro[limit].value == pytest.approx(float(metric.compute()), abs=1e-6)


def test_constant_maps_have_chance_figures() -> None:
    masks = np.eye(8, dtype=np.bool_), np.zeros((4, 4), np.bool_)
    images = [(np.full(mask.shape, 3, np.float32), mask) for mask in masks]
    metrics = pixel_metrics(repeatable(images), seed=0, num_resamples=20)
    assert values_of(metrics) == pytest.approx(
        {
            "auroc": 0.5,
            "average_precision": 0.1,
            "f1_max": 0.2 / 1.1,
            "aupro 0.3": 0.15,
            "aupro 0.05": 0.025,
        }
    )
    assert metrics.f1_threshold == 3


def test_perfect_maps_have_figures_of_1() -> None:
    images = [(mask.astype(np.float32), mask) for _, mask in draw(6, seed=0, size=12, num_levels=1)]
    metrics = pixel_metrics(repeatable(images), seed=0, num_resamples=20)
    assert values_of(metrics) == pytest.approx(dict.fromkeys(values_of(metrics), 1.0))
    np.testing.assert_allclose(intervals_of(metrics), 1.0)


def test_regions_are_8_connected_and_have_equal_weight() -> None:
    mask = np.zeros((6, 6), np.bool_)
    mask[0, 0] = mask[1, 1] = True
    mask[3:, 3:] = True
    anomaly_map = np.zeros((6, 6), np.float32)
    anomaly_map[:2, :2] = np.eye(2)
    metrics = pixel_metrics(repeatable([(anomaly_map, mask)]), limits=[0.3], seed=0, num_resamples=1)
    assert metrics.num_regions == 2
    assert metrics.aupro[0.3].value == pytest.approx(0.5 + 0.5 * 0.15)


def test_values_depend_only_on_ranks() -> None:
    images = draw(4, seed=1, size=20, num_levels=50)
    levels = np.unique(np.concatenate([anomaly_map.ravel() for anomaly_map, _ in images]))
    stretched = np.exp(np.linspace(-80, 80, levels.size)).astype(np.float32)
    stretched[-1] = np.inf
    transformed = [(stretched[np.searchsorted(levels, anomaly_map)], mask) for anomaly_map, mask in images]
    before, after = (pixel_metrics(repeatable(i), seed=0, num_resamples=20) for i in (images, transformed))
    assert values_of(before) == values_of(after)


def test_results_do_not_depend_on_block_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    images = draw(6, seed=1, size=20, num_levels=50)
    whole = pixel_metrics(repeatable(images), seed=0, num_resamples=20)
    monkeypatch.setattr(pixel_level, "_RUN", 20 * 20)
    monkeypatch.setattr(pixel_level, "_BLOCK", 7)
    monkeypatch.setattr(pixel_bootstrap, "_BLOCK", 3)
    in_blocks = pixel_metrics(repeatable(images), seed=0, num_resamples=20)
    assert values_of(in_blocks) == pytest.approx(values_of(whole), abs=1e-12)
    np.testing.assert_allclose(intervals_of(in_blocks), intervals_of(whole), atol=1e-12)


@pytest.mark.slow
def test_curve_approximates_the_exact_one_with_few_points() -> None:
    images = draw(6, seed=4, size=60, num_levels=1e6)
    metrics = pixel_metrics(repeatable(images), limits=[1.0], seed=0, num_resamples=2)
    fpr, tpr, pro = metrics.curve.fpr, metrics.curve.tpr, metrics.curve.pro
    assert 1500 < fpr.size == tpr.size == pro.size <= 2000
    for axis in (fpr, tpr, pro):
        assert axis[0] == 0
        assert axis[-1] == 1
        assert (np.diff(axis) >= 0).all()
    values = np.concatenate([anomaly_map.ravel() for anomaly_map, _ in images])
    is_defect = np.concatenate([mask.ravel() for _, mask in images])
    exact = {((values[~is_defect] >= v).sum(), (values[is_defect] >= v).sum()) for v in np.unique(values)}
    reached = zip(np.rint(fpr * metrics.num_normal), np.rint(tpr * metrics.num_defect), strict=True)
    assert sum(point in exact for point in reached) > 0.95 * fpr.size
    assert trapezoid(tpr, fpr) == pytest.approx(metrics.auroc.value, abs=1e-4)
    assert trapezoid(pro, fpr) == pytest.approx(metrics.aupro[1.0].value, abs=1e-4)


def test_intervals_agree_with_repeated_images_for_values_on_bins() -> None:
    images = draw(7, seed=6, size=8, num_levels=3)
    limits = (0.3, 0.05)
    expected = []
    for weights in resample_weights(7, num_resamples=25, seed=9):
        repeated = [image for image, weight in zip(images, weights, strict=True) for _ in range(weight)]
        expected.append(list(brute_force(repeated, limits=limits).values()))
    metrics = pixel_metrics(repeatable(images), limits=limits, seed=9, num_resamples=25)
    np.testing.assert_allclose(intervals_of(metrics), np.quantile(expected, [0.025, 0.975], axis=0).T, atol=1e-12)


def test_intervals_contain_the_value_and_shrink_with_more_images() -> None:
    widths = []
    for num_images in (12, 192):
        images = draw(num_images, seed=0, size=24, num_levels=1e6)
        metrics = pixel_metrics(repeatable(images), seed=0, num_resamples=200)
        for value, interval in zip(values_of(metrics).values(), intervals_of(metrics), strict=True):
            assert interval.low < value < interval.high
        widths.append([high - low for low, high in intervals_of(metrics)])
    assert (np.array(widths[1]) < 0.7 * np.array(widths[0])).all()


def test_memory_does_not_grow_with_normal_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_level, "_RUN", 1 << 19)
    monkeypatch.setattr(pixel_level, "NUM_QUANTILES", 64)
    monkeypatch.setattr(pixel_bootstrap, "NUM_QUANTILES", 64)
    monkeypatch.setattr(pixel_bootstrap, "_MAX_SAMPLE", 1 << 16)
    size = 256

    def stream(num_images: int) -> Iterator[Pixels]:
        for index in range(num_images):
            mask = np.zeros((size, size), np.bool_)
            mask[:8, :8] = True
            yield np.random.default_rng(index).standard_normal((size, size), dtype=np.float32), mask

    peaks = []
    for num_images in (20, 60):
        tracemalloc.start()
        metrics = pixel_metrics(partial(stream, num_images), seed=0, num_resamples=10)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert metrics.num_normal == num_images * (size**2 - 64)
    assert peaks[1] - peaks[0] < 0.1 * 40 * size**2 * 4


def test_normal_sample_is_bounded_and_fair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_bootstrap, "_MAX_SAMPLE", 4096)
    sample = pixel_bootstrap.NormalSample(seed=0)
    for index in range(100):
        sample.add(np.full(1000, index, np.float32))
    assert 2048 <= sample.values.size <= 4096
    assert sample.values.mean() == pytest.approx(49.5, abs=2)
    assert sample.values.std() == pytest.approx(100 / np.sqrt(12), rel=0.05)


def test_second_pass_with_other_images_is_refused() -> None:
    images = draw(4, seed=0, size=8, num_levels=3)
    once = iter(images)
    with pytest.raises(DataError, match="0 images in the second pass, 4 in the first"):
        pixel_metrics(lambda: once, seed=0)
    for second, message in (
        (images[:3], "3 images in the second pass"),
        ([*images, images[0]], "image 4 of the second pass"),
        (images[::-1], "image 0 of the second pass"),
    ):
        with pytest.raises(DataError, match=message):
            pixel_metrics(partial(next, map(iter, (images, second))), seed=0)


def test_wrong_images_are_refused_by_number() -> None:
    good, bad = draw(2, seed=0, size=8, num_levels=3)
    nan = good[0].copy()
    nan[3, 4] = np.nan
    for wrong, message in (
        ((nan, good[1]), "image 1: the anomaly map holds NaN"),
        ((good[0][:4], good[1]), r"image 1: anomaly map \(4, 8\), mask \(8, 8\)"),
        ((good[0].astype(np.float64), good[1]), "image 1: map float64"),
        ((good[0], good[1].astype(np.uint8)), "image 1: map float32, mask uint8"),
    ):
        with pytest.raises(DataError, match=message):
            pixel_metrics(repeatable([bad, wrong]), seed=0)  # type: ignore[list-item]


def test_images_without_normal_or_defect_pixels_are_refused() -> None:
    anomaly_map = np.zeros((4, 4), np.float32)
    for images, message in (
        ([(anomaly_map, anomaly_map > 0)], "no defect pixel in 1 images"),
        ([(anomaly_map, anomaly_map == 0)], "no normal pixel in 1 images"),
        ([], "no defect pixel in 0 images"),
    ):
        with pytest.raises(DataError, match=message):
            pixel_metrics(repeatable(images), seed=0)


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.1, float("nan")])
def test_limit_outside_0_to_1_is_refused(limit: float) -> None:
    with pytest.raises(UsageError, match="outside"):
        pixel_metrics(repeatable([]), limits=[limit], seed=0)


def test_bootstrap_without_a_usable_resample_is_refused() -> None:
    good, defect = (
        (np.zeros((2, 2), np.float32), np.full((2, 2), has_defect, np.bool_)) for has_defect in (False, True)
    )
    seed = next(s for s in range(20) if 2 in resample_weights(2, num_resamples=1, seed=s))
    with pytest.raises(DataError, match="every bootstrap resample has one class only"):
        pixel_metrics(repeatable([good, defect]), seed=seed, num_resamples=1)
    with pytest.raises(UsageError, match="0 bootstrap resamples"):
        pixel_metrics(repeatable([good, defect]), seed=0, num_resamples=0)
