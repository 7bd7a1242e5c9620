"""`check_detector`: the contract of a detector as executable checks.

Every check trains with a real trainer, on small synthetic parts in memory, on the CPU. Automatic optimisation, manual
optimisation and training without an optimiser are all supported.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from anomaly.detectors.base import Detector
from anomaly.errors import UsageError
from anomaly.system.suggestions import nearest
from anomaly.testing._score_checks import (
    check_calibration,
    check_deterministic,
    check_equal_images,
    check_export,
    check_finite,
    check_forward,
    check_own_image,
)
from anomaly.testing._training_checks import (
    check_constructor,
    check_defect,
    check_learning,
    check_region_of_interest,
    check_same_seed,
    check_state,
)
from anomaly.testing.toy_training import Builder, ContractError

CHECKS: dict[str, Callable[[Builder[Any]], None]] = {
    "constructor": check_constructor,
    "forward": check_forward,
    "own_image": check_own_image,
    "deterministic": check_deterministic,
    "same_seed": check_same_seed,
    "learning": check_learning,
    "calibration": check_calibration,
    "equal_images": check_equal_images,
    "state": check_state,
    "region_of_interest": check_region_of_interest,
    "finite": check_finite,
    "defect": check_defect,
    "export": check_export,
}
"""Name -> check of a detector"""


def check_detector(cls: type[Detector], *, options: dict[str, Any], checks: Iterable[str] = tuple(CHECKS)) -> None:
    """Run the checks of the contract on a detector class, and report all failures together.

    Args:
        cls: detector class.
        options: constructor arguments for a training of about two seconds that detects a large red patch.
        checks: names from `CHECKS`; all of them by default.

    Raises:
        ContractError: some checks failed; the message has one paragraph per failure.
        UsageError: unknown name of a check.
    """
    run_checks(Builder(cls, options), CHECKS, checks)


def run_checks(
    builder: Builder[Any], table: Mapping[str, Callable[[Builder[Any]], None]], names: Iterable[str]
) -> None:
    """Run checks of a table on the model of a builder, and report all failures together.

    Args:
        builder: builder of the detector or sampler.
        table: name -> check.
        names: names from the table.

    Raises:
        ContractError: some checks failed; the message has one paragraph per failure.
        UsageError: unknown name of a check.
    """
    failures: list[Exception] = []
    for name in names:
        if name not in table:
            raise UsageError(f"no check {name!r}; nearest: {nearest(name, table)!r}; all: {', '.join(table)}")
        try:
            table[name](builder)
        except ContractError as error:
            failures.append(error)
        except Exception as error:  # any error of the model is a failure of the check
            place = traceback.extract_tb(error.__traceback__)[-1]
            cause = f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
            failures.append(
                ContractError(f"{builder.cls.__name__} fails {name!r}: it raised {cause}; correct it there")
            )
            failures[-1].__cause__ = error
    if failures:
        text = "\n\n".join(str(failure) for failure in failures)
        raise ContractError(f"{len(failures)} checks failed:\n\n{text}") from failures[0]
