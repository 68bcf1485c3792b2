"""Imports go one way, and importing the library imports no kernel package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "wavemamba"
LEVELS = {"errors": 0, "ops": 1, "layers": 2, "blocks": 3, "models": 4}


def imported_modules(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return names | {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}


def part(module: str) -> str | None:
    pieces = module.split(".")
    return pieces[1] if pieces[0] == "wavemamba" and len(pieces) > 1 else None


@pytest.mark.parametrize("folder", ["ops", "layers", "blocks", "models"])
def test_imports_go_one_way(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        for module in imported_modules(path):
            target = part(module)
            assert target is None or LEVELS.get(target, 99) <= LEVELS[folder], f"{path.name} imports {module}"


def test_diffusion_knows_models_only_as_callables():
    for path in (PACKAGE / "diffusion").rglob("*.py"):
        for module in imported_modules(path):
            assert part(module) not in ("ops", "layers", "blocks", "models", "training"), f"{path.name}: {module}"


def test_importing_the_library_imports_no_kernel_package():
    code = (
        "import sys, timm, torch; known = set(sys.modules); import wavemamba; new = set(sys.modules) - known;"
        "print(sorted({m.partition('.')[0] for m in new} & {'numba', 'triton', 'mamba_ssm', 'causal_conv1d'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_reference_imports_no_backend():
    for path in PACKAGE.rglob("reference.py"):
        for module in imported_modules(path):
            assert not module.split(".")[-1].startswith(("numba", "triton", "mamba_ssm")), f"{path}: {module}"
