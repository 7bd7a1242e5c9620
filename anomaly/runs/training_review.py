"""Review of the training images of a fitted model, the suspicious ones first.

`anomaly fit` writes the ranking of its training images in the format of a run. A reviewer labels images that do not belong
to the training set as defect. Their names stand in a list for `fit --exclude`, which every label rewrites.

    FITTED/suspects/              rows and maps of the ranked images
    FITTED/suspects.labels.csv    labels, as of a run
    FITTED/exclude.txt            names of the images labelled defect
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from anomaly.errors import DataError
from anomaly.runs.labels import read_labels
from anomaly.runs.models import Reading, RunModel, RunModels
from anomaly.runs.review_session import ReviewSession
from anomaly.runs.run_files import MAPS
from anomaly.system.files import as_path, atomic_write

RANKING, DESCRIPTION, FOLDER = "suspects.json", "detector.json", "suspects"
LABELS_FILE, EXCLUDE_FILE = "suspects.labels.csv", "exclude.txt"
THRESHOLD = 1.0
"""Score above which an image is suspicious"""


def is_fitted_model(folder: str | Path) -> bool:
    """Whether a folder is a fitted model of `anomaly fit`, not a run."""
    return (as_path(folder, name="run") / DESCRIPTION).is_file()


def read_ranking(folder: Path) -> dict[str, Any]:
    """Read the ranking of a fitted model.

    Raises:
        DataError: the ranking is missing or damaged.
    """
    try:
        values: dict[str, Any] = json.loads((folder / RANKING).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} holds no ranking of its training images: fit again without --suspects none"
        ) from error
    except ValueError as error:
        raise DataError(f"{folder / RANKING} is damaged ({error}): fit again") from error
    return values


class TrainingReview(ReviewSession):
    """The training images of a fitted model and their labels; safe for several threads.

    Args:
        folder: folder of the fitted model.
        by: name of the reviewer; None for no name.

    Raises:
        DataError: a missing or damaged ranking, or an invalid file of labels.
    """

    def __init__(self, folder: str | Path, *, by: str | None = None) -> None:
        self.folder = as_path(folder, name="run")
        self.ranking = read_ranking(self.folder)
        self._names: list[str] = [image["name"] for image in self.ranking["images"]]
        self._list_lock = threading.Lock()
        self._open(self.folder / FOLDER, by=by, file=self.folder.resolve() / LABELS_FILE)
        if len(self.index) != len(self._names):
            raise DataError(f"{self.folder / FOLDER} and {RANKING} hold different images: fit again")

    def set_label(self, number: int, label: str | None) -> None:
        """Label an image, or remove its label, and rewrite the list of excluded images.

        Args:
            number: number of the image in the ranking.
            label: defect for an image that is excluded, good for one that stays; None removes the label.

        Raises:
            UsageError, DataError, OutputError: as in `ReviewSession.set_label`.
        """
        super().set_label(number, label)
        with self._list_lock:
            defects = {sha256 for sha256, one in read_labels(self.file).items() if one.label == "defect"}
            rows = self.index.read(range(len(self.index)))
            names = list(self.ranking["excluded"])
            names += [name for name, row in zip(self._names, rows, strict=True) if row["sha256"] in defects]
            with atomic_write(self.folder / EXCLUDE_FILE, durable=True) as partial:
                partial.write_text("".join(f"{name}\n" for name in names), encoding="utf-8", errors="surrogateescape")


class TrainingImages(RunModels):
    """Reading options and maps of ranked training images, in the place of a run's models.

    Args:
        review: review of the training images.
    """

    def __init__(self, review: TrainingReview) -> None:
        self._folder = review.folder / FOLDER
        self._white: int = review.ranking["white"]
        self.all: list[RunModel] = []
        self.date = ""
        self.options: dict[str, Any] = {
            "max_pixels": review.ranking["max_pixels"], "frame": "only", "source": review.ranking["data"],
            "threshold": THRESHOLD, "review_threshold": None, "models": {}, "by_product": False,
        }  # fmt: skip

    def find(self, model: str) -> RunModel:
        """Refuse: the ranking has no exported model.

        Raises:
            DataError: always.
        """
        raise DataError("the ranking by calibration scores holds no map of this image")

    def reading(self, model: str) -> Reading:
        """Give the conversion of the training images."""
        return Reading(self._white, "stretch")

    def kept_evidence(self, number: int) -> Path | None:
        """A folder of training images has no evidence."""
        return None

    def kept_map(self, number: int) -> Path | None:
        """Find the map file of an image; None without maps.

        Args:
            number: number of the image in the ranking.
        """
        path = self._folder / MAPS / f"{number:08d}.png"
        return path if path.is_file() else None
