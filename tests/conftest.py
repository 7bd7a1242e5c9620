"""A small category of made-up parts and a small model fitted on it, made once for the whole run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anomaly.imaging.image_file import write_png
from tests.plates import TINY, TINY_BANK, draw_part, make_category

SLOW_FIXTURES = {"fitted_plate", "model", "fitted_bank", "bank_model"}
"""Fixtures that export a model"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that is not slow as a unit test."""
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.unit)


@pytest.fixture(scope="session", autouse=True)
def untraced_export() -> Iterator[None]:
    """Keep the tracer of coverage out of torch's exporter: over its millions of calls it doubles the time."""
    import torch

    export = torch.onnx.export

    def untraced(*arguments: Any, **named: Any) -> Any:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return export(*arguments, **named)
        finally:
            sys.settrace(tracer)

    torch.onnx.export = untraced
    yield
    torch.onnx.export = export


@pytest.fixture(scope="session")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A category in MVTec layout; read only."""
    return make_category(tmp_path_factory.mktemp("data") / "plate")


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain folder of good images; read only."""
    folder = tmp_path_factory.mktemp("plain") / "plates"
    folder.mkdir()
    for n in range(24):
        write_png(folder / f"{n:03d}.png", draw_part(n))
    return folder


@pytest.fixture(scope="session")
def fresh_good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good images that train no model; read only."""
    folder = tmp_path_factory.mktemp("fresh") / "plates"
    folder.mkdir()
    for n in range(12):
        write_png(folder / f"{n:03d}.png", draw_part(5000 + n))
    return folder


@pytest.fixture(scope="session")
def fitted_plate(category: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny autoencoder fitted on `category`, with its exported model.onnx; read only."""
    from anomaly.export.model_file import export_model
    from anomaly.training.fit import fit_model

    folder = fit_model(
        category, out=tmp_path_factory.mktemp("runs") / "plate", detector="autoencoder", options=TINY
    ).folder
    export_model(folder)
    return folder


@pytest.fixture
def model(fitted_plate: Path, tmp_path: Path) -> Path:
    """A copy of the exported model, to do with as one likes."""
    return Path(shutil.copy(fitted_plate / "model.onnx", tmp_path / "model.onnx"))


@pytest.fixture(scope="session")
def fitted_bank(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny memory bank on `plain`, two images to a part, with its exported model.onnx; read only."""
    from anomaly.export.model_file import export_model
    from anomaly.training.fit import fit_model

    groups = tmp_path_factory.mktemp("groups") / "groups.csv"
    groups.write_text("path,group\n" + "".join(f"{n:03d}.png,part {n // 2}\n" for n in range(24)), encoding="utf-8")
    folder = fit_model(
        plain,
        out=tmp_path_factory.mktemp("runs") / "bank",
        detector="memory_bank",
        options=TINY_BANK,
        part_group=str(groups),
    ).folder
    export_model(folder)
    return folder


@pytest.fixture
def bank_model(fitted_bank: Path, tmp_path: Path) -> Path:
    """A copy of the exported memory bank with its reduced training images, to do with as one likes."""
    folder = tmp_path / "bank"
    folder.mkdir()
    for name in ("model.onnx", "model.references.zip"):
        shutil.copy(fitted_bank / name, folder / name)
    return folder / "model.onnx"
