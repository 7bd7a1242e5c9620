"""Detectors and samplers by their names."""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path

from anomaly.detectors import DETECTORS
from anomaly.errors import UsageError
from anomaly.samplers import SAMPLERS

MODELS = DETECTORS | SAMPLERS
"""Name -> `module:Class`; what `fit` trains"""


def detector_class(name: str) -> type:
    """Find a detector or a sampler by its registry name, a detector also by `package.module:Class` from outside.

    Raises:
        UsageError: no such name, module or class, or a class that is no `Detector`.
    """
    target = MODELS.get(name, name)
    if ":" in name and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a class of one's own may lie where one stands, as for `python -m`
    if ":" not in target:
        near = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.0)
        raise UsageError(
            f"no detector {name!r}; nearest: {near[0]!r}; all: {', '.join(MODELS)};"
            " one from outside is named package.module:Class"
        )
    module_name, _, class_name = target.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"detector {name!r} cannot be imported: {error}") from error
    from anomaly.detectors.base import Detector

    if not (isinstance(found, type) and issubclass(found, Detector)):
        raise UsageError(f"{name!r} is no subclass of anomaly.detectors.base.Detector")
    return found
