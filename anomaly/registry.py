"""Classes of detectors and samplers by name: this package's own, those of other packages, and package.module:Class."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from anomaly.detectors import COMPOSED, DETECTORS
from anomaly.errors import UsageError
from anomaly.samplers import SAMPLERS
from anomaly.system.suggestions import nearest

if TYPE_CHECKING:
    from anomaly.detectors.base import Detector
    from anomaly.samplers.base import Sampler

MODELS = DETECTORS | COMPOSED | SAMPLERS
"""Name -> `module:Class` of this package's detectors and samplers"""
GROUPS = {"detector": "anomaly.detectors", "sampler": "anomaly.samplers"}
"""Kind of model -> group of the entry points by which other packages register theirs"""


def detector_class(name: str) -> type[Detector]:
    """Find a detector by its name: of this package, of an entry point `anomaly.detectors`, or package.module:Class.

    Raises:
        UsageError: an unknown name, a name with several owners, a failed import, or a class that is not a `Detector`.
    """
    from anomaly.detectors.base import Detector

    found = _find(name, ("detector",))
    if not issubclass(found, Detector):
        raise UsageError(
            f"{name!r} is not a detector: {found.__name__} does not derive from anomaly.detectors.base.Detector"
        )
    return found


def sampler_class(name: str) -> type[Sampler]:
    """Find a sampler by its name: of this package, of an entry point `anomaly.samplers`, or package.module:Class.

    Raises:
        UsageError: an unknown name, a name with several owners, a failed import, or a class that is not a `Sampler`.
    """
    from anomaly.samplers.base import Sampler

    found = _find(name, ("sampler",))
    if not issubclass(found, Sampler):
        raise UsageError(
            f"{name!r} is not a sampler: {found.__name__} does not derive from anomaly.samplers.base.Sampler"
        )
    return found


def model_class(name: str) -> type[Detector] | type[Sampler]:
    """Find a detector or a sampler by its name; errors as in `detector_class`."""
    from anomaly.detectors.base import Detector
    from anomaly.samplers.base import Sampler

    found = _find(name, ("detector", "sampler"))
    if not issubclass(found, (Detector, Sampler)):
        raise UsageError(
            f"{name!r} is neither a detector nor a sampler: {found.__name__} derives from neither"
            " anomaly.detectors.base.Detector nor anomaly.samplers.base.Sampler"
        )
    return found


def _find(name: str, kinds: tuple[str, ...]) -> type:
    registered = [entry for kind in kinds for entry in entry_points(group=GROUPS[kind], name=name)]
    owners = sorted({_package(entry) for entry in registered} | ({"anomaly"} if name in MODELS else set()))
    if len(owners) > 1:
        raise UsageError(
            f"the name {name!r} is registered by {' and '.join(owners)}: uninstall one of them, or give package.module:Class"
        )
    own = {"detector": DETECTORS | COMPOSED, "sampler": SAMPLERS}
    target = next((own[kind][name] for kind in kinds if name in own[kind]), name)
    if registered:
        return _load(registered[0], name=name, package=owners[0])
    if ":" in target:
        return _load(EntryPoint(name=name, value=target, group=""), name=name)
    if name in MODELS:
        raise UsageError(f"{name!r} is a {'sampler' if name in SAMPLERS else 'detector'}, not a {kinds[0]}")
    known = sorted(
        {*(key for kind in kinds for key in own[kind])}
        | {entry.name for kind in kinds for entry in entry_points(group=GROUPS[kind])}
    )
    raise UsageError(
        f"no {' or '.join(kinds)} {name!r}; nearest: {nearest(name, known)!r}; all: {', '.join(known)};"
        " for a class of another package give package.module:Class"
    )


def _load(entry: EntryPoint, *, name: str, package: str | None = None) -> type:
    try:
        found = entry.load()
    except (ImportError, AttributeError, SyntaxError, TypeError, ValueError, RuntimeError) as error:
        source = f" from the package {package}, which registers it" if package else ""
        raise UsageError(
            f"{name!r} cannot be imported{source}: {type(error).__name__}: {error};"
            " install its package, or put its folder on PYTHONPATH"
        ) from error
    if not isinstance(found, type):
        raise UsageError(f"{name!r} is not a class: {entry.value} is a {type(found).__name__}")
    return found


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value
