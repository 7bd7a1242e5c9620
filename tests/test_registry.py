"""Detectors and samplers by name: this package's own, entry points of other packages, and package.module:Class."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from anomaly.detectors import DETECTORS
from anomaly.detectors.autoencoder import Autoencoder
from anomaly.detectors.base import Detector
from anomaly.errors import UsageError
from anomaly.registry import detector_class, model_class, sampler_class
from anomaly.samplers import SAMPLERS
from anomaly.samplers.base import Sampler
from anomaly.samplers.vae import Vae

MODULE = '''
from anomaly.detectors.autoencoder import Autoencoder
from anomaly.samplers.vae import Vae

class OtherDetector(Autoencoder):
    """A detector of another package."""

class OtherSampler(Vae):
    """A sampler of another package."""

NUMBER = 3
'''
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Function that puts a distribution with entry points on the path of Python."""
    (tmp_path / "other_package.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "other_package", raising=False)

    def add(name: str, **entries: str) -> None:
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
        lines: dict[str, list[str]] = {"detectors": [], "samplers": []}
        for key, value in entries.items():
            kind, _, entry = key.partition("__")
            lines[kind].append(f"{entry} = {value}")
        text = "".join(f"[anomaly.{kind}]\n" + "\n".join(entry) + "\n" for kind, entry in lines.items())
        (info / "entry_points.txt").write_text(text, encoding="utf-8")
        importlib.invalidate_caches()

    return add


def test_own_names_are_found() -> None:
    assert detector_class("autoencoder") is model_class("autoencoder") is Autoencoder
    assert sampler_class("vae") is model_class("vae") is Vae


@pytest.mark.parametrize("name", sorted(set(DETECTORS) - {"anomalib"}))
def test_every_detector_is_a_detector(name: str) -> None:
    assert issubclass(detector_class(name), Detector)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_is_a_sampler_and_not_a_detector(name: str) -> None:
    assert issubclass(sampler_class(name), Sampler)
    assert not issubclass(sampler_class(name), Detector)


def test_class_paths_are_found() -> None:
    path = "anomaly.detectors.autoencoder:Autoencoder"
    assert detector_class(path) is model_class(path) is Autoencoder
    assert sampler_class("anomaly.samplers.vae:Vae") is Vae


def test_entry_points_of_another_package_are_found(install: Install) -> None:
    install(
        "other-package", detectors__other="other_package:OtherDetector", samplers__drawing="other_package:OtherSampler"
    )
    assert detector_class("other").__name__ == model_class("other").__name__ == "OtherDetector"
    assert sampler_class("drawing").__name__ == model_class("drawing").__name__ == "OtherSampler"
    with pytest.raises(UsageError, match=r"no detector 'othr'; nearest: 'other'; all: .*\bother\b"):
        detector_class("othr")


def test_broken_entry_point_matters_only_when_its_name_is_used(install: Install) -> None:
    install("broken-package", detectors__broken="no_such_module:Detector", detectors__missing="other_package:Missing")
    assert detector_class("autoencoder") is Autoencoder
    with pytest.raises(
        UsageError, match=r"'broken' cannot be imported from the package broken-package.*no_such_module"
    ):
        detector_class("broken")
    with pytest.raises(UsageError, match=r"'missing' cannot be imported from the package broken-package.*Missing"):
        model_class("missing")


def test_name_with_two_owners_is_refused(install: Install) -> None:
    install(
        "other-package",
        detectors__autoencoder="other_package:OtherDetector",
        detectors__mine="other_package:OtherDetector",
    )
    install("third-package", detectors__mine="other_package:OtherDetector")
    with pytest.raises(UsageError, match="'autoencoder' is registered by anomaly and other-package: uninstall one"):
        detector_class("autoencoder")
    with pytest.raises(UsageError, match="'mine' is registered by other-package and third-package"):
        model_class("mine")


@pytest.mark.parametrize(
    ("find", "name", "message"),
    [
        (detector_class, "vae", "'vae' is a sampler, not a detector"),
        (sampler_class, "autoencoder", "'autoencoder' is a detector, not a sampler"),
        (detector_class, "autoencodr", "no detector 'autoencodr'; nearest: 'autoencoder'; all: "),
        (model_class, "va", "no detector or sampler 'va'; nearest: 'vae'"),
        (model_class, "", "no detector or sampler ''; nearest: "),
        (model_class, "nowhere:Class", "'nowhere:Class' cannot be imported: ModuleNotFoundError"),
        (model_class, "anomaly.errors:Nothing", "cannot be imported: AttributeError"),
        (detector_class, "anomaly.samplers.vae:Vae", "is not a detector: Vae does not derive from"),
        (sampler_class, "anomaly.detectors.autoencoder:Autoencoder", "is not a sampler: Autoencoder does not derive"),
        (
            model_class,
            "anomaly.errors:UsageError",
            "is neither a detector nor a sampler: UsageError derives from neither",
        ),
        (model_class, "anomaly.registry:GROUPS", "is not a class: anomaly.registry:GROUPS is a dict"),
        (model_class, ":", "':' cannot be imported"),
    ],
)
def test_invalid_names_are_refused(find: Callable[[str], type], name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find(name)


def test_library_never_imports_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with pytest.raises(UsageError, match="'only_here:OtherDetector' cannot be imported"):
        model_class("only_here:OtherDetector")
    assert sys.path == before
