from __future__ import annotations

import pytest

from anomaly.system.progress import progress_bar, show_progress


def run(label: str) -> None:
    with progress_bar(label) as report:
        report(1, 2)
        report(2, 2)


def test_library_call_shows_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    run("score")
    assert capsys.readouterr() == ("", "")


def test_bar_is_shown_on_standard_error_within_the_block(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress():
        run("score the images")
    out, err = capsys.readouterr()
    assert out == ""
    assert "score the images" in err
    assert "2/2" in err
    run("after the block")
    assert capsys.readouterr() == ("", "")
