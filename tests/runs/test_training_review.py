"""Review of training images: labels become a list of excluded images."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomaly.errors import DataError
from anomaly.runs.review_session import RowFilter
from anomaly.runs.training_review import TrainingImages, TrainingReview, is_fitted_model
from tests.service.review.training_ranking import write_ranking

pytestmark = pytest.mark.unit


def test_images_stand_in_the_order_of_suspicion(tmp_path: Path) -> None:
    review = TrainingReview(write_ranking(tmp_path))
    page = review.page(RowFilter(), sort="order", offset=0, limit=10)
    assert [Path(item["path"]).name for item in page["items"]] == [f"{n}.png" for n in range(6)]
    assert review.counts()["defect"]["all"] == 2


def test_label_defect_lists_the_image_and_its_removal_takes_it_off(tmp_path: Path) -> None:
    folder = write_ranking(tmp_path)
    review = TrainingReview(folder, by="Ada")
    review.set_label(1, "defect")
    review.set_label(0, "defect")
    review.set_label(2, "good")
    assert (folder / "exclude.txt").read_text() == "0.png\n1.png\n"
    review.set_label(0, None)
    assert (folder / "exclude.txt").read_text() == "1.png\n"


def test_list_begins_with_images_that_are_already_excluded(tmp_path: Path) -> None:
    folder = write_ranking(tmp_path, excluded=("lot 1/9.png",))
    TrainingReview(folder).set_label(0, "defect")
    assert (folder / "exclude.txt").read_text() == "lot 1/9.png\n0.png\n"


def test_maps_belong_to_their_images(tmp_path: Path) -> None:
    images = TrainingImages(TrainingReview(write_ranking(tmp_path)))
    assert images.kept_map(5) is not None
    assert images.kept_map(6) is None
    assert images.reading("") == (255, "stretch")
    with pytest.raises(DataError, match="no map"):
        images.find("")


def test_fitted_model_without_a_ranking_is_refused(tmp_path: Path) -> None:
    (tmp_path / "detector.json").write_text("{}")
    assert is_fitted_model(tmp_path)
    with pytest.raises(DataError, match="no ranking"):
        TrainingReview(tmp_path)


def test_damaged_ranking_is_refused(tmp_path: Path) -> None:
    folder = write_ranking(tmp_path)
    (folder / "suspects.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        TrainingReview(folder)
