"""Every error this package raises on purpose, in one tree.

    AnomalyError                 a message that names the thing, the value met and the way out
    ├── UsageError               a wrong option, key or argument (exit code 2)
    │   └── Unsupported          what a model does not have by its nature, with the reason
    ├── DataError                a folder, split or mask that cannot be used
    │   └── ImageError           one image that cannot be used; carries a `code` of the results table
    ├── CalibrationError         a guarantee that the good images at hand cannot support
    ├── TrainingError            a loss that is no number, or memory that does not suffice; what was learned is kept
    ├── ModelError               an .onnx that is corrupt, foreign, of another contract or not itself any more
    ├── ParityError              an export that does not give what the trained model gives
    ├── WeightsError             backbone weights that are neither at hand nor to be had
    ├── ProviderError            an inference provider asked for by name that is not there
    ├── OutputError              a result that cannot be written
    └── RequestError             a request to the service that is refused; carries its HTTP `status`

Foreign errors are translated at the seam where they are met (`raise ... from error`).
"""

from __future__ import annotations

from typing import Literal

ErrorCode = Literal[
    "missing",
    "unreadable",
    "truncated",
    "not_an_image",
    "too_large",
    "unsupported_pixels",
    "no_model",
    "internal",
]


class AnomalyError(Exception):
    """Base of all errors raised on purpose; its text is fit for a person to read."""


class UsageError(AnomalyError, ValueError):
    """A wrong option, key or argument."""


class Unsupported(UsageError):  # noqa: N818 - the field says so
    """What a model does not have by its nature, such as the likelihood of a GAN; the text says why."""


class DataError(AnomalyError):
    """A folder, split, group table or mask that cannot be used."""


class ImageError(DataError):
    """One image that cannot be used.

    `code` is the status of its row in a table of results; `str(error)` is the row's message.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: ErrorCode = code

    def __reduce__(self) -> tuple[type[ImageError], tuple[ErrorCode, str]]:
        return ImageError, (self.code, str(self))


class CalibrationError(AnomalyError):
    """A guarantee that the good images at hand cannot support."""


class TrainingError(AnomalyError):
    """A training that cannot go on; what was learned before stays in the run folder."""


class ModelError(AnomalyError):
    """A model file that is corrupt, foreign, of another contract, or fails its golden image."""


class ParityError(AnomalyError):
    """An exported graph that differs from the trained model by more than the tolerance."""


class WeightsError(AnomalyError):
    """Backbone weights that are neither at hand nor to be had."""


class ProviderError(AnomalyError):
    """An inference provider asked for by name that is not there."""


class OutputError(AnomalyError):
    """A result that cannot be written."""


class RequestError(AnomalyError):
    """A request to the service that is refused.

    `status` is the HTTP code of the answer; `str(error)` goes to the client, so it names nothing of this host. 503 says
    that the same request may be taken later.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
