"""Imports go one way, lazy ones too; Ray stays in orchestrate/, and torch out of data/."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import simclr_ray

ROOT = Path(simclr_ray.__file__).parent
ALLOWED = {
    "checks": set(),
    "config": {"checks"},
    "space": {"checks", "config"},
    "data": {"config"},
    "model": {"config"},
    "train": {"config", "data", "model"},
    "evaluate": {"config", "data", "model", "train"},
    "export": {"config", "data", "model", "train"},
    "report": {"config", "data", "model", "train"},
    "command": {"config"},
    "orchestrate": {"config", "space", "data", "model", "train", "evaluate", "export", "report"},
}
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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in imports(path):
        package = name.split(".")[0]
        if package == "simclr_ray":
            target = name.split(".")[1]
            assert target == layer or target in ALLOWED[layer], f"{layer} imports {target}"
        if package == "ray":
            assert layer == "orchestrate", f"{path} imports ray"
        if package in ("torch", "torchvision"):
            assert layer not in ("checks", "config", "space", "data", "command"), f"{path} imports {package}"


def test_a_data_worker_loads_neither_torch_nor_ray() -> None:
    code = "import sys, simclr_ray.data.load; print(sorted({'torch', 'torchvision', 'ray', 'PIL'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
