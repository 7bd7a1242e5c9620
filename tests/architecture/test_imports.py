"""The import order of the rooms, held against the one list in docs/concepts/rooms.md."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import anomaly

ROOT = Path(anomaly.__file__).resolve().parent
ROOMS_PAGE = ROOT.parent / "docs" / "concepts" / "rooms.md"
TRAINING_ROOMS = {"nn", "detectors", "samplers", "training", "export", "benchmark", "testing"}
TRAINING_PACKAGES = {
    "torch", "torchvision", "pytorch_lightning", "lightning", "timm", "diffusers", "transformers", "anomalib", "sklearn",
    "scipy", "matplotlib",
}  # fmt: skip
CHARTS = ("report", "matplotlib")
"""The one exception: a report draws its charts, and serving never imports it"""


def read_order() -> dict[str, int]:
    """Room -> its place in the list; equal places may not import each other."""
    text = re.search(r"(?m)^    errors <(?:.*\n)(?:^     .*\n)*", ROOMS_PAGE.read_text(encoding="utf-8"))
    assert text, f"{ROOMS_PAGE} holds no list that begins with `errors <`"
    floors = " ".join(text[0].split()).split(" < ")
    return {room.strip(): place for place, floor in enumerate(floors) for room in floor.split(",")}


ORDER = read_order()


def read_modules(root: Path = ROOT) -> dict[str, ast.Module]:
    """Dotted name -> syntax tree of every module below the package."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = read_modules()


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported name, in functions too; imports for the type checker alone are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else str(node.module) for name in names)
        else:
            yield from imports(node)


def room_of(module: str) -> str:
    """Room of a dotted name; the package itself belongs to the public face, `__main__` to the commands."""
    parts = module.split(".")
    return "api" if len(parts) == 1 else parts[1].replace("__main__", "commands")


def violations(module: str, tree: ast.Module) -> list[str]:
    """Broken rules of one module, each as a sentence."""
    room, found = room_of(module), []
    for imported in imports(tree):
        top, *inner = imported.split(".")
        if top in TRAINING_PACKAGES and room not in TRAINING_ROOMS and (room, top) != CHARTS:
            found.append(f"{module} imports {top}, and {room} is no training room")
        if top != "anomaly" or not inner:
            continue
        other = room_of(imported)
        if other != room and ORDER[other] >= ORDER[room]:
            found.append(f"{module} imports {imported}: {other} is not left of {room}")
        private = [name for name in inner[1:] if name.startswith("_")]
        if private and other != room:
            found.append(f"{module} imports {imported}, which is private to {other}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_lies_left_of_its_room(module: str) -> None:
    assert violations(module, MODULES[module]) == []


def test_list_names_every_room_and_no_other() -> None:
    assert {room_of(module) for module in MODULES} == set(ORDER)


def test_modules_import_one_another_in_no_circle() -> None:
    graph = {module: set(imports(tree)) & set(MODULES) for module, tree in MODULES.items()}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize(
    ("module", "line", "rule"),
    [
        ("anomaly.scoring.pipeline", "from anomaly.training.dataset import Batch", "training is not left of scoring"),
        ("anomaly.scoring.pipeline", "def later():\n    import torch", "scoring is no training room"),
        ("anomaly.service.app", "from anomaly.detectors._drawn_defects import draw", "private to detectors"),
        ("anomaly.metrics.curves", "from anomaly.data import folders", "data is not left of metrics"),
    ],
)  # fmt: skip
def test_planted_fault_is_found(module: str, line: str, rule: str) -> None:
    assert any(rule in sentence for sentence in violations(module, ast.parse(line)))
