"""Imports go one way."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "wavemamba"
ROWS = re.findall(r"^\| (\d+) \| (.*?) \| (.*)", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
# Every room and its floor: a room imports from lower floors alone, and from nothing on its own floor but itself.
_WORDS = ("errors", "checks", "names", "registry", "dtypes", "constants")
GROUND = (*_WORDS, "files", "locks", "seeds", "sizes", "version")
FLOORS = (
    GROUND,  # these may import each other
    ("scans",),
    ("ops",),
    ("transforms", "machine"),
    ("layers",),
    ("blocks",),
    ("models", "diffusion", "data", "metrics"),
    ("sampling",),
    ("training", "integrations", "compat"),
    ("commands",),
    ("train", "encode", "sample", "evaluate"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imported_modules(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return names | {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}


def part(module: str) -> str | None:
    pieces = module.split(".")
    return pieces[1] if pieces[0] == "wavemamba" and len(pieces) > 1 else None


def files_of(room: str) -> list[Path]:
    single = PACKAGE / f"{room}.py"
    return [single] if single.is_file() else sorted((PACKAGE / room).rglob("*.py"))


def test_every_room_is_known():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms - {"__init__"} == set(FLOOR)


def test_the_page_on_rooms_has_these_rooms_and_floors():
    rooms = [(room, int(floor)) for floor, names, _ in ROWS for room in re.findall(r"`(\w+)(?:/|\.py)`", names)]
    assert dict(rooms) == FLOOR
    assert len(rooms) == len(FLOOR), "a room stands there twice"


@pytest.mark.parametrize(("names", "words"), [row[1:] for row in ROWS])
def test_what_the_page_names_in_a_room_is_there(names, words):
    for name in re.findall(r"`([\w/]+(?:/|\.py))`", words):
        rooms = [PACKAGE / room for room in re.findall(r"`(\w+)/`", names)]
        found = (PACKAGE / name).exists() or (ROOT / name).exists() or any(any(room.rglob(name)) for room in rooms)
        assert found, f"{names}: {name}"


@pytest.mark.parametrize("room", FLOOR)
def test_imports_go_one_way(room):
    for path in files_of(room):
        for module in imported_modules(path):
            target = part(module)
            if target is None or target == room or {target, room} <= set(GROUND):
                continue
            assert FLOOR[target] < FLOOR[room], f"{path.relative_to(PACKAGE)} imports {module}"


def test_diffusion_knows_models_only_as_callables():
    for path in (PACKAGE / "diffusion").rglob("*.py"):
        for module in imported_modules(path):
            assert part(module) in (None, "diffusion", *GROUND), f"{path.name}: {module}"


def test_reference_imports_no_backend():
    for path in PACKAGE.rglob("reference.py"):
        for module in imported_modules(path):
            assert not module.split(".")[-1].startswith(("numba", "triton", "mamba_ssm")), f"{path}: {module}"
