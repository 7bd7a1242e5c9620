"""The suspicious training images in the report."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from anomaly.report.page import write_report
from anomaly.report.suspects import suspect_pictures
from anomaly.report.values import SuspectPicture
from tests.report.test_report import EVIL, full_report, image

pytestmark = pytest.mark.slow


def written(path: Path, suspects: tuple[SuspectPicture, ...]) -> str:
    write_report(path, dataclasses.replace(full_report(), suspects=suspects))
    return path.read_text(encoding="utf-8")


def test_report_shows_each_suspect_with_score_and_p_value(tmp_path: Path) -> None:
    page = written(tmp_path / "report.html", (SuspectPicture(image(0), EVIL, 1.234, 0.00456),))
    assert "Suspicious training images" in page
    assert "score 1.23, p 0.0046" in page
    assert EVIL not in page


def test_report_without_suspects_has_no_section(tmp_path: Path) -> None:
    assert "Suspicious training images" not in written(tmp_path / "report.html", ())


def test_folder_without_a_ranking_gives_no_pictures(tmp_path: Path) -> None:
    assert suspect_pictures(tmp_path) == ()
