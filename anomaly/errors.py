"""Every error that this package raises on purpose, in one tree.

    AnomalyError                 a message that names the thing, the value met and the way out
    ├── UsageError               a wrong option, key or argument (exit code 2)
    │   └── Unsupported          a property that this kind of model cannot have, with the reason
    ├── DataError                a folder, split or mask that cannot be used
    │   └── ImageError           one image that cannot be used; carries the `code` of its row in a results table
    ├── CalibrationError         a guarantee that the good images cannot support
    ├── TrainingError            a failed training, such as a NaN loss or too little memory; the last state is kept
    ├── ModelError               an .onnx file that is corrupt, foreign, changed or of another contract
    ├── ParityError              an exported graph that does not give the trained model's outputs
    ├── WeightsError             backbone weights that are neither stored here nor downloadable
    ├── ProviderError            a requested inference provider that is not available
    ├── OutputError              a result that cannot be written
    └── RequestError             a request that the service refuses; carries its HTTP `status`

Errors of other libraries are translated where they occur (`raise ... from error`).
"""

from __future__ import annotations

from typing import Literal

__all__ = [
    "AnomalyError",
    "CalibrationError",
    "DataError",
    "ErrorCode",
    "ImageError",
    "ModelError",
    "OutputError",
    "ParityError",
    "ProviderError",
    "RequestError",
    "TrainingError",
    "Unsupported",
    "UsageError",
    "WeightsError",
]

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
    """Base of all errors raised on purpose; its text is written for the user."""


class UsageError(AnomalyError, ValueError):
    """A wrong option, key or argument."""


class Unsupported(UsageError):  # noqa: N818 - the name reads as a statement
    """A property that this kind of model cannot have, such as the likelihood of a GAN; the text gives the reason."""


class DataError(AnomalyError):
    """A folder, split, group table or mask that cannot be used."""


class ImageError(DataError):
    """One image that cannot be used.

    `code` is the status of its row in a results table; `str(error)` is the message of that row.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: ErrorCode = code

    def __reduce__(self) -> tuple[type[ImageError], tuple[ErrorCode, str]]:
        return ImageError, (self.code, str(self))


class CalibrationError(AnomalyError):
    """A guarantee that the good images cannot support."""


class TrainingError(AnomalyError):
    """A training that cannot continue; the last state stays in the fitted model's folder."""


class ModelError(AnomalyError):
    """A model file that is corrupt, foreign, of another contract, or fails its golden image."""


class ParityError(AnomalyError):
    """An exported graph that differs from the trained model by more than the tolerance."""


class WeightsError(AnomalyError):
    """Backbone weights that are neither stored here nor downloadable."""


class ProviderError(AnomalyError):
    """A requested inference provider that is not available."""


class OutputError(AnomalyError):
    """A result that cannot be written."""


class RequestError(AnomalyError):
    """A request that the service refuses.

    `status` is the HTTP code of the answer. `str(error)` is sent to the client and contains no detail of this host. Status 503
    means that the same request may succeed later.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
