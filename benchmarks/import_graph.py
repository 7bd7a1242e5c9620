"""The import graph of a package, from its syntax trees: nodes, edges, cycles and floors.

    python -m benchmarks.import_graph --out benchmarks/results/import_graph.json
    python -m benchmarks.import_graph OLD/anomaly --name before --commit COMMIT --out benchmarks/results/import_graph.json

A room is a folder or a module directly below the package, except `__init__` and `__main__`. An edge is an import of one room
or module by another, at the top or in a function. Imports for type checkers only do not count. A cycle is a strongly
connected component of at least two nodes. The number of floors is the number of rooms on the longest path, with a cycle as
one room. Other entries of the file stay.
"""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from anomaly.system.files import write_json
from anomaly.system.run_card import commit, now

Graph = dict[str, set[str]]
"""Node -> the nodes that it imports"""


def read_modules(root: Path) -> dict[str, ast.Module]:
    """Dotted name, relative to the package -> syntax tree; "" for the package's own `__init__`."""
    modules = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = ast.parse(path.read_text(encoding="utf-8"))
    return modules


def imported_names(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """Absolute imports as (module, name or None), without those for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)
        else:
            yield from imported_names(node)


def module_graph(modules: Mapping[str, ast.Module], *, package: str) -> Graph:
    """Modules and their imports of one another."""
    graph: Graph = {}
    for name, tree in modules.items():
        found = set()
        for module, imported in imported_names(tree):
            if module != package and not module.startswith(f"{package}."):
                continue
            inner = module.removeprefix(package).removeprefix(".")
            child = f"{inner}.{imported}".removeprefix(".")
            found.add(child if imported and child in modules else inner)
        graph[name] = (found & set(modules)) - {name}
    return graph


def room_graph(graph: Graph) -> Graph:
    """Rooms and their imports of one another."""
    rooms: Graph = {}
    for module, imported in graph.items():
        room = module.partition(".")[0]
        if room in ("", "__main__"):
            continue
        others = {other.partition(".")[0] for other in imported}
        rooms.setdefault(room, set()).update(others - {room, "", "__main__"})
    return rooms


def components(graph: Graph) -> list[set[str]]:
    """Strongly connected components, imported ones first (Tarjan, 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            at = stack.index(node)
            found.append(set(stack[at:]))
            del stack[at:]

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return found


def num_floors(graph: Graph) -> int:
    """Number of rooms on the longest path, one cycle as one room."""
    height: dict[str, int] = {}
    for component in components(graph):
        below = {other for node in component for other in graph[node]} - component
        height |= dict.fromkeys(component, 1 + max((height[other] for other in below), default=0))
    return max(height.values(), default=0)


def measure(root: Path) -> dict[str, Any]:
    """Count rooms, modules, edges, cycles and floors of a package."""
    modules = module_graph(read_modules(root), package=root.name)
    rooms = room_graph(modules)
    return {
        "rooms": len(rooms),
        "modules": len(modules),
        "room edges": sum(map(len, rooms.values())),
        "module edges": sum(map(len, modules.values())),
        "cycles between rooms": [sorted(nodes) for nodes in components(rooms) if len(nodes) > 1],
        "cycles between modules": [sorted(nodes) for nodes in components(modules) if len(nodes) > 1],
        "floors": num_floors(rooms),
    }


def main() -> None:
    """Count the import graph of a package, and add it to the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", default=Path("anomaly"), help="folder of the package")
    parser.add_argument("--name", default="after", help="entry of the file")
    parser.add_argument("--commit", help="commit of the package; by default that of this checkout")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    entries = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.is_file() else {}
    figures = measure(arguments.root)
    entries[arguments.name] = {"commit": arguments.commit or commit(), "date": now(), **figures}
    write_json(arguments.out, entries)
    print(json.dumps({arguments.name: figures}, indent=1))


if __name__ == "__main__":
    main()
