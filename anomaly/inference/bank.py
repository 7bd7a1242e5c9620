"""`BankFile`: an exported model with a bank of patches, scored with training images left out; patch embeddings.

The graph itself computes all scores: rows of left-out images are replaced by copies of a remaining row. No second
implementation exists.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from anomaly.errors import ModelError
from anomaly.inference.artifact import INPUT, OUTPUTS, Metadata, load_graph, read_metadata
from anomaly.inference.bank_graph import Rows, bank_rows, bank_without, initializer, row_names, with_rows_as_inputs
from anomaly.inference.bank_record import BankRecord
from anomaly.inference.scorer import OnnxScorer, Scorer, Scores
from anomaly.inference.session import Device, open_session


class BankFile:
    """A model with a bank, open for changes of the bank.

    Args:
        model: graph of an exported file.
        metadata: its metadata.
        name: name of the file, for messages.
        device: inference device.
        num_threads: threads of one inference on the CPU; 0 takes all processors.

    Raises:
        ModelError: a detector without a bank.
        ProviderError: the device is not available.
    """

    def __init__(
        self, model: onnx.ModelProto, metadata: Metadata, *, name: str, device: Device = "cpu", num_threads: int = 0
    ) -> None:
        if metadata.bank is None:
            raise ModelError(
                f"{name} has no bank of patches: it holds {metadata.detector!r}, or an older version exported it;"
                " fit memory_bank and export it"
            )
        self.metadata, self.name = metadata, name
        self.bank: BankRecord = metadata.bank
        self.rows: list[Rows] = bank_rows(model, self.bank)
        """rows of each backbone, (M, d)"""
        self.usual: list[Rows | None] = [
            None if part.usual is None else initializer(model, part.usual) for part in self.bank.backbones
        ]
        """usual distance at each place for each backbone, (h, w)"""
        embeddings = [part.embedding for part in self.bank.backbones]
        self._embeddings = [one for one in embeddings if one is not None]
        opened = with_rows_as_inputs(model, row_names(self.bank), outputs=self._embeddings)
        self._session, self.device = open_session(
            opened.SerializeToString(),
            name=name,
            device=device,
            num_threads=num_threads,
            precision=metadata.precision,
            is_fixed=False,
        )

    @classmethod
    def open(cls, path: str | Path, *, device: Device = "cpu", num_threads: int = 0) -> BankFile:
        """Open an exported file.

        Raises:
            ModelError: a missing, damaged or foreign file, or a detector without a bank.
            ProviderError: the device is not available.
        """
        model = load_graph(path)
        metadata = read_metadata(model, name=str(path))
        return cls(model, metadata, name=str(path), device=device, num_threads=num_threads)

    def score(self, image: NDArray[np.uint8], *, without: Collection[int] = ()) -> Scores:
        """Score images as if some training images were not in the bank.

        Args:
            image: (n, H, W, 3) uint8 RGB.
            without: numbers of the left-out training images.

        Raises:
            UsageError: all rows of a bank belong to the left-out images.
            ImageError: another size than that of a fixed model.
        """
        return Scores(*self._run(list(OUTPUTS), image, without))

    def embed(self, image: NDArray[np.uint8]) -> list[Rows]:
        """Embed the patches of images: (n, h, w, d) for each backbone.

        Args:
            image: (n, H, W, 3) uint8 RGB.

        Raises:
            ModelError: a graph without a tensor of patch embeddings.
            ImageError: another size than that of a fixed model.
        """
        if len(self._embeddings) < len(self.bank.backbones):
            raise ModelError(
                f"{self.name}: the graph of {self.metadata.detector!r} has no tensor of patch embeddings; use memory_bank"
            )
        return self._run(self._embeddings, image, ())

    def _run(self, outputs: list[str], image: NDArray[np.uint8], without: Collection[int]) -> list[Rows]:
        self.metadata.check_size(image, name=f"{len(image)} images")
        feed = bank_without(self.bank, self.rows, without) if without else {}
        size = self.metadata.fixed[0] if self.metadata.fixed else len(image)
        parts = []
        for at in range(0, len(image), size):
            part = image[at : at + size]
            padded = np.concatenate((part, np.repeat(part[-1:], size - len(part), axis=0)))
            parts.append([one[: len(part)] for one in self._session.run(outputs, {INPUT: padded, **feed})])
        return [np.concatenate(each) for each in zip(*parts, strict=True)]


class LeftOutScorer:
    """Scorer of a model with a bank, without some training images."""

    def __init__(self, bank: BankFile, images: Collection[int]) -> None:
        self._bank, self._images = bank, images

    def score(self, image: NDArray[np.uint8]) -> Scores:
        """Score images (n, H, W, 3) uint8 RGB of one size."""
        return self._bank.score(image, without=self._images)


def calibration_scorers(scorer: OnnxScorer, images: Sequence[int]) -> list[Scorer]:
    """Give the scorer of each calibration image, and of anything drawn onto it.

    Calibration images of a leave-one-out model are in its bank: each is scored without its own part group. A detector
    with `cross` calibration cannot leave an image out; its file scores the image, which it was trained on.

    Args:
        scorer: exported model.
        images: numbers of calibration images, in the order of their paths.

    Raises:
        ModelError: a file with leave-one-out calibration that does not record its bank.
    """
    if scorer.metadata.calibration.construction != "leave_one_out":
        return [scorer] * len(images)
    bank = BankFile.open(scorer.path, device=scorer.device)  # type: ignore[arg-type]  # the session's own device
    return [LeftOutScorer(bank, bank.bank.members(number)) for number in images]
