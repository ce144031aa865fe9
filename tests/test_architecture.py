"""Imports go one way, lazy ones too; Ray stays in orchestrate/, and torch out of data/."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import simclr_ray

ROOT = Path(simclr_ray.__file__).parent
FLOORS = [
    {"config", "periodic", "cloud_notice", "group"},
    {"collective", "storage", "recipes", "membership"},
    {"data", "model"},
    {"methods", "optim"},
    {"train"},
    {"evaluate", "export", "sweep", "planning"},
    {"report"},
    {"orchestrate"},
    {"cli"},
]
"""From the bottom to the top: a package imports itself and the floors below it, but for `data` and `model`."""
NO_TORCH = {"config", "membership", "storage", "recipes", "periodic", "cloud_notice", "data"}
TORCHVISION_SOURCE = "data/prepare/torchvision.py"
"""Reads torchvision's datasets, for `prepare` alone."""
MODULES = [path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem != "__init__"]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def floor_of(package: str) -> int:
    return next(number for number, packages in enumerate(FLOORS) if package in packages)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    inside = path.relative_to(ROOT)
    package = inside.parts[0].removesuffix(".py")
    for name in imports(path):
        first, _, rest = name.partition(".")
        if first == "simclr_ray" and rest:
            target = rest.split(".")[0]
            assert target == package or floor_of(target) < floor_of(package), f"{package} imports {target}"
        if first == "ray":
            assert package == "orchestrate", f"{inside} imports ray"
        if first in ("torch", "torchvision"):
            assert package not in NO_TORCH or str(inside) == TORCHVISION_SOURCE, f"{inside} imports {first}"


@pytest.mark.parametrize("path", sorted((ROOT / "orchestrate").rglob("[!_]*.py")), ids=lambda path: path.stem)
def test_what_lies_in_orchestrate_needs_ray(path: Path) -> None:
    names = imports(path)
    assert any(name == "ray" or name.startswith(("ray.", "simclr_ray.orchestrate.")) for name in names)


def test_rank_and_size_are_asked_in_one_file() -> None:
    asking = {"get_rank", "get_world_size"}
    found = {
        str(path.relative_to(ROOT))
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in asking and ast.unparse(node.value) != "context"  # Ray's
    }
    assert found == {"collective.py"}


def test_a_data_worker_loads_neither_torch_nor_ray() -> None:
    code = "import sys, simclr_ray.data.load; print(sorted({'torch', 'torchvision', 'ray', 'PIL'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
