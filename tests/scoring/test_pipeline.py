"""Scoring many images: order of the rows, error rows, batches, verdicts and regions."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly.errors import UsageError
from anomaly.imaging.image_file import decode_image, write_png
from anomaly.imaging.regions import Region, find_regions
from anomaly.inference.batching import batches_by_size
from anomaly.inference.scorer import OnnxScorer, Scores
from anomaly.inference.session import SESSION_ERRORS
from anomaly.scoring import loading
from anomaly.scoring.pipeline import score_images
from anomaly.scoring.settings import DEFAULT_PRODUCT, Settings
from anomaly.scoring.sources import Item
from anomaly.scoring.windows import ScoredImage
from tests.plates import draw_part

SIZES = [(72, 88), (40, 60), (72, 88), (88, 72), (40, 60), (72, 88), (1, 1), (72, 88), (40, 60)]
INVALID = {
    "missing.png": "missing",
    "text.png": "not_an_image",
    "cut.jpg": "truncated",
    "empty.png": "not_an_image",
    "huge.png": "too_large",
    "folder.png": "unreadable",
}
SETTINGS = Settings(threshold=1.0, batch_size=2, max_pixels=100_000_000, num_threads=2)


def write_invalid(folder: Path) -> None:
    """Write the files of `INVALID`."""
    image = draw_part(0)
    (folder / "text.png").write_text("a certificate, not an image")
    jpeg = cv2.imencode(".jpg", image)[1].tobytes()
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) * 2 // 3])
    (folder / "empty.png").write_bytes(b"")
    png = cv2.imencode(".png", image)[1].tobytes()
    header = png[12:16] + struct.pack(">II", 60_000, 60_000) + png[24:29]
    (folder / "huge.png").write_bytes(png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:])
    (folder / "folder.png").mkdir()


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Images of four sizes, each of the first followed by an invalid file."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    write_invalid(folder)
    found = []
    invalid = list(INVALID)
    for number, (height, width) in enumerate(SIZES):
        name = f"{number}.png"
        write_png(folder / name, cv2.resize(draw_part(number), (width, height)).astype(np.uint8))
        found += [name, *invalid[number : number + 1]]
    return [str(folder / name) for name in found]


@pytest.fixture
def scorer(model: Path) -> OnnxScorer:
    return OnnxScorer(model, device="cpu", num_threads=1)


def run(paths: Sequence[str], scorer: OnnxScorer, settings: Settings = SETTINGS) -> list[ScoredImage]:
    return list(score_images(map(Item, paths), scorers={DEFAULT_PRODUCT: scorer}, settings=settings, seconds={}))


def test_rows_keep_the_order_of_the_list_and_invalid_files_are_error_rows(paths: list[str], scorer: OnnxScorer) -> None:
    found = run(paths, scorer)
    assert [s.row.path for s in found] == paths
    for scored in found:
        row, name = scored.row, Path(scored.row.path).name
        assert (row.threshold, row.model) == (1.0, scorer.sha256[:16])
        if name in INVALID:
            assert (row.status, row.verdict, row.score, row.p_value) == (INVALID[name], "", None, None)
            assert (row.width, row.height, row.regions) == (None, None, [])
            assert row.path in row.message
            assert scored.image.size == scored.anomaly_map.size == 0
        else:
            assert row.status == "ok"
            assert (row.height, row.width) == SIZES[int(name.removesuffix(".png"))] == scored.image.shape[:2]
            assert row.score is not None
            assert row.verdict == ("defect" if row.score > 1 else "good")
            assert row.message == ""


def test_row_of_an_image_does_not_depend_on_the_others(paths: list[str], scorer: OnnxScorer) -> None:
    for scored in run(paths, scorer):
        (alone,) = run([scored.row.path], scorer)
        assert alone.row.status == scored.row.status
        if scored.row.score is not None:
            assert alone.row.score == pytest.approx(scored.row.score, abs=1e-5, rel=1e-5)
            assert np.array_equal(alone.image, scored.image)
            np.testing.assert_allclose(alone.anomaly_map, scored.anomaly_map, atol=1e-5, rtol=1e-5)


def test_sha256_belongs_to_the_file(paths: list[str], scorer: OnnxScorer) -> None:
    for scored in run(paths, scorer):
        path = Path(scored.row.path)
        expected = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        assert scored.row.sha256 == expected


def test_equal_lists_give_equal_rows_with_any_number_of_threads(paths: list[str], scorer: OnnxScorer) -> None:
    first = [s.row for s in run(paths, scorer)]
    assert [s.row for s in run(paths, scorer)] == first
    for num_threads in (1, 7):
        assert [s.row for s in run(paths, scorer, replace(SETTINGS, num_threads=num_threads))] == first


def test_batch_size_changes_at_most_the_last_bits(paths: list[str], scorer: OnnxScorer) -> None:
    first = [s.row for s in run(paths, scorer)]
    for batch_size in (1, 3, 64):
        again = [s.row for s in run(paths, scorer, replace(SETTINGS, batch_size=batch_size))]
        for a, b in zip(first, again, strict=True):
            assert (a.path, a.status, a.verdict, a.sha256) == (b.path, b.status, b.verdict, b.sha256)
            if a.score is not None:
                assert b.score == pytest.approx(a.score, abs=1e-5, rel=1e-5)


def test_batch_holds_one_size_in_the_order_of_the_list() -> None:
    shapes = [(4, 4, 3), (5, 4, 3), (4, 4, 3), (4, 4, 3), (5, 4, 3), (9, 9, 3)]
    assert batches_by_size(shapes, batch_size=2) == [[0, 2], [3], [1, 4], [5]]
    assert batches_by_size(shapes, batch_size=2) == batches_by_size(list(shapes), batch_size=2)
    assert batches_by_size(shapes, batch_size=9) == [[0, 2, 3], [1, 4], [5]]
    assert batches_by_size([], batch_size=2) == []


def test_no_images_give_no_rows(scorer: OnnxScorer) -> None:
    assert run([], scorer) == []


def test_16_bit_image_is_scaled_by_the_models_white(scorer: OnnxScorer, tmp_path: Path) -> None:
    image = draw_part(1)
    write_png(tmp_path / "8.png", image[..., 0])
    write_png(tmp_path / "16.png", image[..., 0].astype(np.uint16) * 257)
    scorer.metadata = replace(scorer.metadata, white=65535)
    deep, shallow = run([str(tmp_path / "16.png"), str(tmp_path / "8.png")], scorer)
    assert deep.row.status == "ok"
    assert np.array_equal(deep.image, shallow.image)
    assert deep.row.score == shallow.row.score


def test_max_pixels_refuses_large_images_by_their_header(paths: list[str], scorer: OnnxScorer) -> None:
    small = run(paths, scorer, replace(SETTINGS, max_pixels=40 * 60))
    sizes = {s.row.path: (s.row.height, s.row.width) for s in small if s.row.status == "ok"}
    assert set(sizes.values()) == {(40, 60), (1, 1)}
    assert sum(s.row.status == "too_large" for s in small) == 7  # five images, huge.png and cut.jpg


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "batch size 0: give at least 1"),
        ({"threshold": float("nan")}, "threshold nan is not finite"),
        ({"threshold": float("inf")}, "threshold inf is not finite"),
        ({"review_threshold": 1.0}, "review threshold 1.0 is not below the threshold 1.0"),
        ({"review_threshold": float("nan")}, "review threshold nan is not below"),
    ],
)
def test_invalid_settings_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(SETTINGS, **values)  # type: ignore[arg-type]


class Failing(OnnxScorer):
    """Fails on images of one size, like a device without memory."""

    def score(self, image: NDArray[np.uint8]) -> Scores:
        if image.shape[1:3] == (40, 60):
            raise SESSION_ERRORS[0]("out of memory")
        return super().score(image)


class Broken(OnnxScorer):
    """Gives NaN and infinity, like an overflow in half precision."""

    def score(self, image: NDArray[np.uint8]) -> Scores:
        scores = super().score(image)
        if image.shape[1:3] == (40, 60):
            return Scores(scores.score, np.full_like(scores.anomaly_map, np.inf))
        if image.shape[1:3] == (88, 72):
            return Scores(np.full_like(scores.score, np.nan), scores.anomaly_map)
        return scores


def test_failed_inference_becomes_error_rows_and_the_run_continues(paths: list[str], model: Path) -> None:
    for row in (s.row for s in run(paths, Failing(model, device="cpu", num_threads=1))):
        number = Path(row.path).stem
        failed = number.isdigit() and SIZES[int(number)] == (40, 60)
        assert (row.status == "internal") == failed
        if failed:
            assert "inference failed (out of memory); use a smaller batch" in row.message


def test_any_exception_of_an_image_becomes_its_error_row(
    paths: list[str], scorer: OnnxScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(data: bytes, *, name: str, white: int, max_pixels: int, frame: str) -> NDArray[np.uint8]:
        if name == paths[0]:
            raise MemoryError("no room")
        return decode_image(data, name=name, white=white, max_pixels=max_pixels)

    monkeypatch.setattr(loading, "decode_image", decode)
    first, *others = (s.row for s in run(paths, scorer))
    assert (first.status, first.verdict) == ("internal", "")
    assert first.message == f"{paths[0]}: MemoryError: no room"
    assert sum(row.status == "ok" for row in others) == len(SIZES) - 1


def test_score_that_is_not_finite_is_never_good(paths: list[str], model: Path) -> None:
    for row in (s.row for s in run(paths, Broken(model, device="cpu", num_threads=1))):
        number = Path(row.path).stem
        broken = number.isdigit() and SIZES[int(number)] in ((40, 60), (88, 72))
        assert (row.status == "internal") == broken
        if broken:
            assert (row.verdict, row.score) == ("", None)
            assert "not finite" in row.message


def test_threshold_decides_verdict_and_regions(category: Path, scorer: OnnxScorer) -> None:
    paths = [str(p) for p in sorted((category / "test/scratch").iterdir())]
    strict, loose = run(paths, scorer), run(paths, scorer, replace(SETTINGS, threshold=1e6))
    for scored, mask_path in zip(strict, sorted((category / "ground_truth/scratch").iterdir()), strict=True):
        assert scored.row.verdict == "defect"
        strongest = scored.row.regions[0]
        mask = cv2.imread(str(mask_path), cv2.IMREAD_GRAYSCALE)
        assert mask is not None
        inside = mask[strongest.y : strongest.y + strongest.height, strongest.x : strongest.x + strongest.width]
        assert inside.any()
        assert strongest.peak > 1
        assert not strongest.weak
    assert {(s.row.verdict, len(s.row.regions)) for s in loose} == {("good", 0)}


def test_regions_are_exact_boxes_in_descending_order() -> None:
    enlarged = np.zeros((20, 30), dtype=np.float32)
    enlarged[2:5, 3:10] = 1.5
    enlarged[3, 4] = 2.0
    enlarged[10, 10] = enlarged[11, 11] = enlarged[12, 10] = 3.0  # connected by their corners
    enlarged[19, 29] = 1.25
    enlarged[0, 20:22] = 1.25
    enlarged[15, 0:5] = 1.0  # at the threshold, not above it
    assert find_regions(enlarged, threshold=1.0, rejected=True) == [
        Region(x=10, y=10, width=2, height=3, area=3, peak=3.0, weak=False),
        Region(x=3, y=2, width=7, height=3, area=21, peak=2.0, weak=False),
        Region(x=20, y=0, width=2, height=1, area=2, peak=1.25, weak=False),
        Region(x=29, y=19, width=1, height=1, area=1, peak=1.25, weak=False),
    ]
    assert find_regions(enlarged, threshold=1.0, rejected=False) == find_regions(enlarged, threshold=1.0, rejected=True)
    (highest,) = find_regions(enlarged, threshold=2.5, rejected=False)
    assert (highest.x, highest.y, highest.area) == (10, 10, 3)


def test_peak_belongs_to_the_region_not_to_its_box() -> None:
    enlarged = np.zeros((9, 9), dtype=np.float32)
    enlarged[1, 1:8] = enlarged[1:8, 1] = 2.0
    enlarged[5, 5] = 7.0  # inside the box of the angle
    found = find_regions(enlarged, threshold=1.0, rejected=True)
    assert [(r.area, r.peak) for r in found] == [(1, 7.0), (13, 2.0)]


def test_rejected_image_without_a_region_gets_a_weak_region_around_the_maximum() -> None:
    enlarged = np.full((12, 12), 0.1, dtype=np.float32)
    enlarged[4:7, 2:4] = 0.6
    enlarged[5, 3] = 0.9
    enlarged[9, 9] = 0.8  # also above half, and not connected to the maximum
    assert find_regions(enlarged, threshold=1.0, rejected=True) == [
        Region(x=2, y=4, width=2, height=3, area=6, peak=pytest.approx(0.9), weak=True)  # type: ignore[arg-type]
    ]
    assert find_regions(enlarged, threshold=1.0, rejected=False) == []


def test_constant_map_of_a_rejected_image_is_one_weak_region() -> None:
    (region,) = find_regions(np.full((3, 4), 0.5, dtype=np.float32), threshold=1.0, rejected=True)
    assert (region.x, region.y, region.width, region.height, region.area, region.weak) == (0, 0, 4, 3, 12, True)


def test_several_pages_are_refused_unless_the_first_is_requested(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "pages.tiff"
    pages = [np.full((40, 50, 3), value, dtype=np.uint8) for value in (90, 200)]
    assert cv2.imwritemulti(str(path), pages)
    scorer = OnnxScorer(model, device="cpu", num_threads=1)
    for frame, status in (("only", "unsupported_pixels"), ("first", "ok")):
        settings = replace(SETTINGS, frame=frame)
        (scored,) = score_images([Item(str(path))], scorers={DEFAULT_PRODUCT: scorer}, settings=settings, seconds={})
        assert scored.row.status == status
    assert (scored.image == 90).all()
