"""The rooms of the house, the floors on which they stand, and the arrows of imports between them.

``python -m tests.house`` prints them as they are. A room imports rooms on lower floors alone; those on one floor never
import each other, but for the ground floor.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

GROUND = "errors, files, printing, round_seeds, seeds"
FLOORS = [
    GROUND,
    "kernels",
    "core",
    "protocol",
    "aggregators, preaggregators, attacks, diagnostics, tasks",
    "audit, certificates",
    "flower, runs",
    "app",
    "studies",
    "redteam",
    "cli, clients, server",
    "experiments, benchmarks",
]
OUTSIDE = ("clients", "server", "experiments", "benchmarks")
MODULES = sorted(p for room in ("flwr_robust", *OUTSIDE) for p in (ROOT / room).rglob("*.py"))


def module_name(path: Path) -> str:
    """Return the dotted name of a file of the project."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(name: str) -> tuple[int, str] | None:
    """Return the floor and the room of a module; None if it stands on no floor."""
    parts = name.removeprefix("flwr_robust.").split(".")
    inside = name.startswith("flwr_robust.")
    for floor, rooms in enumerate(FLOORS):
        for room in rooms.split(", "):
            if parts[0] == room and inside == (room not in OUTSIDE):
                return floor, room
    return None


def imports(path: Path) -> Iterator[str]:
    """Yield what a file imports, whether at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violation(name: str, imported: str) -> str | None:
    """Return the sentence that says why ``name`` must not import ``imported``, or None."""
    here, there = room_of(name), room_of(imported)
    if here is None or there is None or here[1] == there[1]:
        return None
    if there[0] > here[0]:
        return f"{name} imports {imported} from a higher floor"
    if there[0] == here[0] and FLOORS[here[0]] != GROUND:
        return f"{name} imports its neighbour {imported}"
    return None


def arrows() -> dict[str, set[str]]:
    """Return the rooms that each room imports."""
    found: dict[str, set[str]] = {room: set() for rooms in FLOORS for room in rooms.split(", ")}
    for path in MODULES:
        here = room_of(module_name(path))
        if here is not None:
            found[here[1]] |= {there[1] for name in imports(path) if (there := room_of(name)) and there != here}
    return found


def main() -> None:
    """Print the floors, from the top, with what each room imports."""
    found = arrows()
    for floor in range(len(FLOORS) - 1, -1, -1):
        for room in FLOORS[floor].split(", "):
            modules = sum(here == (floor, room) for here in map(room_of, map(module_name, MODULES)))
            below = ", ".join(sorted(found[room])) or "-"
            print(f"{floor:>5}  {room:<15}{modules:>4} modules  <- {below}")
    print(f"{len(found)} rooms, {len(FLOORS)} floors, {sum(map(len, found.values()))} arrows")


if __name__ == "__main__":
    main()
