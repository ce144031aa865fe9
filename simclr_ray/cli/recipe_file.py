"""A recipe out of a user's own file: FILE.py with one function that returns a Config, or FILE.py:FUNCTION."""

from __future__ import annotations

import inspect
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import TypeVar

from simclr_ray.config import BadInput, Config
from simclr_ray.config.suggest import suggestion

T = TypeVar("T")

ADDRESS = re.compile(r"(?P<file>.+\.py)(:(?P<function>\w+))?")
_MODULE = "recipe_file"
"""Name under which a file runs: not __main__, so that what a file does as a script is left out."""


def names_file(word: str) -> bool:
    """Whether `word` reads FILE.py or FILE.py:FUNCTION."""
    return ADDRESS.fullmatch(word) is not None


def load_recipe(word: str) -> tuple[FunctionType, Config]:
    """The function that `word` names, and the config that it returns. Raises BadInput for whatever goes wrong."""
    match = ADDRESS.fullmatch(word)
    assert match, word
    path, wanted = Path(match["file"]), match["function"]
    if not path.is_file():
        raise BadInput(f"there is no recipe file {path}: give FILE.py, FILE.py:FUNCTION or the name of a recipe")
    content = _run(path, lambda: runpy.run_path(str(path), run_name=_MODULE))
    functions = {
        name: value
        for name, value in content.items()
        if inspect.isfunction(value) and value.__module__ == _MODULE and not name.startswith("_")
    }
    function = _chosen(path, functions, wanted)
    config = _run(path, function)
    if not isinstance(config, Config):
        raise BadInput(f"{path}: {function.__name__}() returns a {type(config).__name__}: a recipe returns a Config")
    return function, config


def _chosen(path: Path, functions: dict[str, FunctionType], wanted: str | None) -> FunctionType:
    names = ", ".join(functions)
    if wanted is None and len(functions) > 1:
        raise BadInput(f"{path} holds several functions: write {path}:FUNCTION with one of {names}")
    if not functions:
        raise BadInput(f"{path} holds no function: a recipe is a function that returns a Config")
    name = wanted or next(iter(functions))
    if name not in functions:
        raise BadInput(f"{path} holds no function {name!r}{suggestion(name, functions)}")
    return functions[name]


def _run(path: Path, step: Callable[[], T]) -> T:
    try:
        return step()
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 (a user's file: it may raise anything, and is bad input then)
        reason = (str(error).splitlines() or [""])[0]
        raise BadInput(f"{path} cannot be used: {type(error).__name__}: {reason}") from None
