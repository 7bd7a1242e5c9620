"""Reference pages name exactly the keys, columns, codes, endpoints and rooms of the code."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any, get_args

import pytest

from anomaly.errors import ErrorCode
from anomaly.generation.artifact import SamplerMetadata
from anomaly.inference.artifact import CALIBRATION_TENSORS, CalibrationRecord, LabelledRecord, Metadata
from anomaly.inference.golden import Golden
from anomaly.inference.tiles import Tiling
from anomaly.scoring.rows import COLUMNS
from anomaly.service.openapi import openapi_document
from tests.docs.pages import ROOT, read

REFERENCE = ROOT / "docs" / "reference"


def section(page: str, title: str) -> str:
    """Text of a section, up to the next heading of any level."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", read(REFERENCE / page), re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no section {title!r}"
    return found[1]


def first_column(text: str) -> list[str]:
    """Names in code in the first column of a section's tables, in order."""
    cells = re.findall(r"^\| ([^|]*) \|", text, flags=re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize(
    ("title", "record"),
    [
        ("Detectors", Metadata),
        ("`calibration`", CalibrationRecord),
        ("`golden`", Golden),
        ("`tiling`", Tiling),
        ("`labelled`", LabelledRecord),
        ("Samplers", SamplerMetadata),
    ],
)
def test_metadata_page_has_exactly_the_keys(title: str, record: Any) -> None:
    assert sorted(first_column(section("metadata.md", title))) == sorted(field.name for field in fields(record))


def test_formats_page_has_the_columns_codes_and_tensors() -> None:
    assert first_column(section("formats.md", "Rows")) == COLUMNS
    assert first_column(section("formats.md", "Error codes")) == list(get_args(ErrorCode))
    assert set(CALIBRATION_TENSORS.values()) <= set(re.findall(r"`([^`]+)`", section("formats.md", "The model file")))


def test_protocol_page_has_every_endpoint() -> None:
    text = read(REFERENCE / "protocol.md")
    for path, methods in openapi_document([("plate", "1")])["paths"].items():
        if "/versions/{version}" in path:
            continue
        for method in {"get", "post"} & set(methods):
            assert f"`{method.upper()} {path}`" in text, f"{method.upper()} {path}"


def test_rooms_page_describes_every_room() -> None:
    text = read(ROOT / "docs" / "concepts" / "rooms.md")
    order = re.search(r"(?m)^    errors <(?:.*\n)(?:^     .*\n)*", text)
    assert order
    rooms = {room for floor in re.split(r"<", order[0]) for room in re.findall(r"\w+", floor)}
    described = set(first_column(text[text.index("## The rooms") :]))
    assert rooms <= described
