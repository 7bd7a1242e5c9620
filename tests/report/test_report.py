"""The page of the report: sections, figures, pictures, escaping, and equal bytes for equal reports."""

from __future__ import annotations

import base64
import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly.conformal.calibration import CalibrationScores, OperatingPoint
from anomaly.conformal.guarantee import guarantee_for
from anomaly.conformal.outliers import Outliers
from anomaly.errors import DataError, OutputError, UsageError
from anomaly.metrics import Estimate, Interval, Rate, roc_curve
from anomaly.report.page import write_report
from anomaly.report.pictures import PICTURE_SIDE
from anomaly.report.values import (
    DefectExample,
    DetectionRate,
    Influence,
    LabelledResults,
    Metric,
    OperatingResult,
    Parity,
    Report,
    ScoredImage,
    Speed,
    Training,
)

EVIL = "<script>alert('1')</script>&\"quoted\".png"
SECTIONS = {
    "Reading a verdict",
    "The guarantee on good parts",
    "Scores of the parts",
    "Results on labelled images",
    "Images that set the threshold",
    "Smallest detected defects",
    "Explaining a rejection",
    "Training",
    "Speed",
    "Provenance",
    "Glossary",
}


def image(seed: int, side: int = 220) -> NDArray[np.uint8]:
    """Texture, edges and sensor noise, as in a real image."""
    rng = np.random.default_rng(seed)
    texture = cv2.GaussianBlur(rng.normal(0, 60, (side, side, 3)), (0, 0), 3) * 3
    cv2.circle(texture, (side // 2, side // 2), side // 3, (40, 60, 80), thickness=3)
    return np.clip(120 + texture + rng.normal(0, 3, texture.shape), 0, 255).astype(np.uint8)


def scored(name: str, kind: str, score: float, picture: NDArray[np.uint8]) -> ScoredImage:
    return ScoredImage(image=picture, overlay=picture, name=name, kind=kind, score=score)


def rate(size: float, contrast: float, num_detected: int, kind: str = "scratch", num_drawn: int = 10) -> DetectionRate:
    return DetectionRate(kind, size, 200 * size, contrast, Rate(num_detected, num_drawn))


def full_report(num_pairs: int = 2) -> Report:
    calibration_scores = np.linspace(-1, 0.999, 99)
    good, defect = np.array([0.1, 0.2, 1.5]), {"crack": np.array([0.7, 3.0]), "$5$ 裂纹": np.array([9.0, 2.0])}
    scores = np.concatenate([good, *defect.values()])
    curve = (np.linspace(0, 1, 50), np.linspace(0, 1, 50) ** 0.2)
    pictures = [image(seed) for seed in range(min(num_pairs, 6))]
    return Report(
        category="cover",
        date="2030-01-02T03:04:05+00:00",
        training=Training(
            detector="fastflow",
            reason="its backbone is available",
            num_train=396,
            num_stopping=0,
            num_part_groups=480,
            excluded=("torn.png",),
            findings=("Two images are near copies.",),
            config={"steps": 500, "backbone": "resnet18"},
            seconds={"train": 12.3456},
        ),
        guarantee=guarantee_for(99, alpha=0.01, guarantee="expected"),
        calibration_scores=calibration_scores,
        labelled=LabelledResults(
            good=good,
            defect=defect,
            metrics=(Metric("AUROC", Estimate(0.9, Interval(0.8, 0.95)), "It ranks."),),
            roc=roc_curve(scores, np.arange(len(scores)) >= 3),
            pro=curve,
            misses=(scored("missed.png", "crack", 0.7, pictures[0]),),
            false_alarms=(scored("alarm.png", "good", 1.5, pictures[0]),),
        ),
        influential=tuple(
            Influence(scored(f"{n:03d}.png", "good", 0.9, pictures[n % len(pictures)]), -0.124)
            for n in range(num_pairs)
        ),
        detection_rates=(rate(0.05, 0.2, 3), rate(0.1, 0.2, 9), rate(0.1, 0.4, 10)),
        defect_examples=(DefectExample(scored("007.png", "foreign_body", 2.5, pictures[0]), 0.1, 20.0, 0.4),),
        speed=(Speed("a processor", 8, 40.0, "Decoding and the network."),),
        parity=Parity(73, 3.2e-6, 9e-6, 1e-3, 0),
        provenance={"Seed": "0", "Model file, SHA-256": "ab" * 32},
        operating=(
            OperatingResult(OperatingPoint(0.05, 0.913, 0.05, None), Rate(1, 3), Rate(1, 4), Rate(30, 120)),
            OperatingResult(OperatingPoint(0.01, 1.0, 0.01, 0.0298), Rate(0, 0), Rate(0, 0), Rate(0, 0)),
        ),
        outliers=Outliers(("odd.png",), 0.41),
    )


def bare_report() -> Report:
    """The values that every model has, and no others."""
    training = Training("autoencoder", "requested by name", 40, 0, 50, (), (), {}, {})
    return Report(
        category="cover", date="2030-01-02", training=training, guarantee=guarantee_for(10, alpha=0.1, guarantee="expected"),
        calibration_scores=np.linspace(-1, 0.999, 10), labelled=None, influential=(), detection_rates=(), defect_examples=(),
        speed=(), parity=None, provenance={},
    )  # fmt: skip


class Page(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.headings: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += " "  # separates the cells of a table
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["h2"] and data.strip():
            self.headings.add(data)
        self.text += data

    def values(self, name: str) -> list[str]:
        return [value for _, found, value in self.attributes if found == name]

    def words(self) -> str:
        return " ".join(self.text.split())


def decoded(uri: str) -> NDArray[np.uint8]:
    """The picture in a data URI, with channels in OpenCV's order."""
    data = np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8)
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def render(path: Path, report: Report) -> Page:
    write_report(path, report)
    return Page(path.read_text(encoding="utf-8"))


def test_results_at_other_rates_and_outliers_are_shown(tmp_path: Path) -> None:
    words = render(tmp_path / "page.html", full_report()).words()
    assert "5 % 0.913 5.0 % – 33.3 % (1 of 3) 25.0 % (1 of 4) 25.0 % (30 of 120)" in words.replace("\u00a0", " ")
    assert "not measured not measured not measured" in words
    assert "odd.png. Without it the threshold would be 0.41" in words


def test_leave_one_out_with_part_groups_is_explained(tmp_path: Path) -> None:
    ranked = CalibrationScores(np.linspace(-1, 0.999, 60), [3] * 60, "leave_one_out", False)
    guarantee = ranked.guarantee(alpha=0.05, guarantee="expected")
    training = dataclasses.replace(bare_report().training, num_train=60)
    report = dataclasses.replace(
        bare_report(), guarantee=guarantee, calibration_scores=ranked.scores, training=training
    )
    words = render(tmp_path / "page.html", report).words()
    assert "leave-one-out, approximate, 60 images of 20 part groups" in words
    assert "without its part group" in words
    assert "95 % bound: only with --calibration split" in words
    assert "It counts part groups. The 60 calibration images form 20 part groups." in words
    assert "with 95 % confidence it is at most" not in words.lower()


@pytest.fixture(scope="module")
def full_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, full_report())
    return path


def test_page_has_all_sections_and_figures(full_page: Path) -> None:
    page = Page(full_page.read_text(encoding="utf-8"))
    assert page.headings == SECTIONS
    assert page.tags.count("svg") == 4, "scores, ROC, PRO and one kind of drawn defect"
    words = page.words()
    for expected in (
        "Of 1,000 good parts, expect at most 10 to be rejected (1.0 %). With 95 % confidence it is at most 30 (3.0 %).",
        "just above number 99 of 99",
        "The 495 images form 480 part groups",
        "Misses 1 of 4 25.0 % 0.63 % to 80.6 %",
        "False alarms 1 of 3 33.3 %",
        "AUROC 0.900 0.800 to 0.950 It ranks.",
        "missed.png score 0.700, accepted crack",
        "alarm.png score 1.500, rejected",
        "Without it the threshold would fall by 12.4 %.",
        "--exclude LIST",
        "SYNTHETIC 007.png score 2.500, rejected drawn foreign body, 20 px (10 % of the short side), contrast 0.4:",
        "scratch 20 px (10 %) 20 px (10 %)",
        "9 detected of 10 have a 95 % interval from 55.5 % to 99.7 %.",
        "a processor 8 40.0 25.0 Decoding and the network.",
        "on 73 images. The largest difference is 3.2e-06 in the score and 9e-06 in the anomaly map",
        "1: torn.png",
        "train 12.3",
        "2030-01-02 03:04:05 UTC",
    ):
        assert expected in words


def test_page_reports_missing_labels_and_measurements(tmp_path: Path) -> None:
    page = render(tmp_path / "report.html", bare_report())
    assert page.headings == SECTIONS
    words = page.words()
    for expected in (
        "the share of missed defects is not known",
        "50 (one image each)",
        "not measured",
        "No calibration images were selected",
        "No defects were drawn",
        "No findings",
        "Speed was not measured",
        "was not compared with the trained model",
    ):
        assert expected in words
    assert "img" not in page.tags


@pytest.mark.parametrize("missing", ["good", "defect"])
def test_one_class_without_test_images(tmp_path: Path, missing: str) -> None:
    report = full_report()
    empty = np.zeros(0)
    labelled = dataclasses.replace(
        report.labelled, good=empty if missing == "good" else np.array([0.1]),
        defect={"crack": empty} if missing == "defect" else {"crack": np.array([2.0])},
        metrics=(), roc=(empty, empty), pro=(empty, empty), misses=(), false_alarms=(),
    )  # fmt: skip
    page = render(tmp_path / "report.html", dataclasses.replace(report, labelled=labelled))
    assert ("There were no images of defects." in page.words()) == (missing == "defect")
    assert ("There were no test images of good parts." in page.words()) == (missing == "good")
    assert page.tags.count("svg") == 2


def test_page_loads_nothing(full_page: Path) -> None:
    html = full_page.read_text(encoding="utf-8")
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert all(value.startswith("data:image/") for value in page.values("src"))
    assert len(page.values("src")) == 2 * 5
    assert "http" not in re.sub(r"data:image/[^\"]*", "", html)
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)\)", html))


def test_every_reference_within_the_page_has_one_target(full_page: Path) -> None:
    html = full_page.read_text(encoding="utf-8")
    page = Page(html)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    wanted = page.values("href") + page.values("xlink:href") + page.values("aria-labelledby")
    wanted += re.findall(r"url\(([^)]*)\)", html)
    assert {value.lstrip("#") for value in wanted} <= set(ids)


def test_every_picture_and_chart_is_described(full_page: Path) -> None:
    page = Page(full_page.read_text(encoding="utf-8"))
    assert len([alt for alt in page.values("alt") if alt]) == page.tags.count("img")
    assert page.values("role").count("img") == page.tags.count("svg") + 1, "the charts and the scale of colours"
    headers = [tag for tag, name, _ in page.attributes if name == "scope"]
    assert headers == ["th"] * page.tags.count("th")


def test_only_synthetic_pictures_are_labelled(full_page: Path) -> None:
    page = Page(full_page.read_text(encoding="utf-8"))
    labelled = [alt.startswith("SYNTHETIC") for alt in page.values("alt")]
    assert sum(labelled) == 2
    for uri, synthetic in zip(page.values("src"), labelled, strict=True):
        assert decoded(uri).shape[:2] == (220 + 28 * synthetic, 220), "the label is a strip below the picture"
    assert page.text.count("SYNTHETIC") == 2, "one on the banner, one beside the picture"


def test_text_from_files_is_escaped(tmp_path: Path) -> None:
    report = full_report()
    picture = image(1)
    evil = scored(EVIL, EVIL, 0.5, picture)
    assert report.labelled is not None
    report = dataclasses.replace(
        report,
        category=EVIL,
        date=EVIL,
        training=Training(EVIL, EVIL, 1, 1, 1, (EVIL,), (EVIL,), {EVIL: EVIL}, {EVIL: 1.0}),
        labelled=dataclasses.replace(
            report.labelled, defect={EVIL: np.array([0.5])}, misses=(evil,), false_alarms=(evil,),
            metrics=(Metric(EVIL, Estimate(0.5, Interval(0, 1)), EVIL),),
        ),
        influential=(Influence(evil, 0.0),),
        detection_rates=(rate(0.1, 0.2, 3, kind=EVIL),),
        defect_examples=(DefectExample(evil, 0.1, 20, 0.2),),
        speed=(Speed(EVIL, 1, 1.0, EVIL),),
        provenance={EVIL: EVIL},
    )  # fmt: skip
    page = render(tmp_path / "report.html", report)
    assert "script" not in page.tags
    assert page.text.count(EVIL) > 20, "each value appears as given, escaped once"
    assert f"SYNTHETIC: drawn {EVIL} on image {EVIL}" in page.values("alt")
    assert "&amp;" not in page.text
    assert "&lt;" not in page.text


def test_names_of_any_bytes_and_letters(tmp_path: Path) -> None:
    report = full_report()
    name = b"lot\xe9_$x$ \xe8\xa3\x82.png".decode("utf-8", errors="surrogateescape")
    assert report.labelled is not None
    labelled = dataclasses.replace(report.labelled, defect={name: np.array([0.5, 2.0])})
    influential = (Influence(scored(name, "good", 0.5, image(1)), 0.0),)
    page = render(tmp_path / "r.html", dataclasses.replace(report, labelled=labelled, influential=influential))
    assert page.text.count("lot\\udce9_$x$ 裂.png") == 3, "in the chart, in the table and beside the picture"


def test_equal_reports_give_equal_bytes(full_page: Path, tmp_path: Path) -> None:
    with matplotlib.rc_context({"axes.linewidth": 5, "font.size": 30, "svg.hashsalt": "other"}):
        write_report(tmp_path / "b.html", full_report())
        assert matplotlib.rcParams["font.size"] == 30, "the user's settings stay"
    assert full_page.read_bytes() == (tmp_path / "b.html").read_bytes()


def test_sixty_pictures_stay_small(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    page = render(path, full_report(num_pairs=27))
    assert page.tags.count("img") == 60
    assert path.stat().st_size < 3_000_000


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 3000, 3), (3000, 1, 3), (7, 5, 3), (500, 300, 3)])
def test_pictures_of_all_sizes_are_shown(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    grey = np.full(shape, 90, np.uint8)
    report = dataclasses.replace(
        bare_report(),
        influential=(Influence(scored("odd.png", "good", 0.5, grey), 0.0),),
        defect_examples=(DefectExample(scored("odd.png", "dent", 0.5, grey), 0.1, 20, 0.2),),
    )
    page = render(tmp_path / "report.html", report)
    shown = decoded(page.values("src")[0])
    assert max(shown.shape[:2]) == min(PICTURE_SIDE, max(shape[:2]))
    assert np.abs(shown.astype(int) - 90).max() <= 2
    assert len(page.values("src")) == 4


@pytest.mark.parametrize(
    "picture", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_invalid_pictures_are_refused(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    report = dataclasses.replace(bare_report(), influential=(Influence(scored("x.png", "good", 0.5, picture), 0.0),))
    with pytest.raises(UsageError, match="give uint8 RGB"):
        write_report(tmp_path / "report.html", report)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_too_many_false_alarms_are_pointed_out(tmp_path: Path) -> None:
    report = full_report()
    assert report.labelled is not None
    sentence = "More good test parts were rejected than the guarantee explains."
    assert sentence not in render(tmp_path / "a.html", report).words(), "1 of 3 agrees with the guarantee"
    labelled = dataclasses.replace(report.labelled, good=np.array([0.5] * 5 + [1.5] * 5))
    assert sentence in render(tmp_path / "b.html", dataclasses.replace(report, labelled=labelled)).words()


def test_number_of_scores_must_match_the_guarantee(tmp_path: Path) -> None:
    report = bare_report()
    with pytest.raises(UsageError, match="9 calibration scores and a guarantee on 10"):
        write_report(
            tmp_path / "report.html", dataclasses.replace(report, calibration_scores=report.calibration_scores[:9])
        )
    calibration_scores = report.calibration_scores.copy()
    calibration_scores[3] = np.nan
    with pytest.raises(DataError, match="1 of 10 scores are NaN"):
        write_report(tmp_path / "report.html", dataclasses.replace(report, calibration_scores=calibration_scores))


def test_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(OutputError, match="choose another place"):
        write_report(tmp_path / "file" / "report.html", bare_report())
