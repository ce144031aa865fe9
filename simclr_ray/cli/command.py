"""What the commands share: how arguments are read, and the exit codes.

0: done. 2: bad input, one line. 1: a failure, with its traceback. 130: Ctrl-C. 141: nobody reads the output any more.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, make_dataclass
from typing import Annotated, Any, TypeVar

import tyro

from simclr_ray.cli.recipe_file import load_recipe, names_file
from simclr_ray.config import BadInput, Config, config_types, current_key
from simclr_ray.config.suggest import suggestion

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe that the command line names."""

    name: str
    """That of its function."""
    config: Config
    doc: str | None


def run_command(main: Callable[[list[str]], int | None]) -> None:
    """Runs `main` on the command line's arguments and exits with its code."""
    try:
        code = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        code = 128 + signal.SIGPIPE
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from what was saved", file=sys.stderr)
        code = 130
    sys.exit(code)


@contextlib.contextmanager
def writing(place: str) -> Iterator[None]:
    """Raises BadInput where the file or folder `place` cannot be written."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"cannot write {place}: {str(error).splitlines()[0]}") from None


def _reader_has_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more, as after `| head`; then what is left is dropped."""
    output = select.poll()
    output.register(sys.stdout, 0)  # a pipe without a reader is an error, which needs no registration
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def parse(cls: type[T], argv: list[str], *, default: T | None = None, description: str | None = None) -> T:
    """An instance of the dataclass `cls` from `argv`. A wrong flag or value is BadInput; --help prints and exits."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            settings = (tyro.conf.HelptextFromCommentsOff, tyro.conf.AvoidSubcommands)
            parsed: Any = tyro.cli(cls, args=argv, default=default, description=description, config=settings)
            return parsed
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
    raise BadInput(_one_line(complaint.getvalue()))


def _one_line(complaint: str) -> str:
    """Tyro draws its complaint as a box of several lines: the words without the box."""
    words = re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│─┌┐└┘|]+", " ", complaint)
    words = re.sub(r"\s+", " ", words).strip()
    words = re.sub(r"^(Parsing error|Value error( Error parsing config\.\w+:)?|Required options)\s*", "", words)
    return re.sub(r"\s*For full helptext, \S+.*$", "", words) + "; --help lists the settings"


def choose_recipe(argv: list[str], recipes: Mapping[str, Callable[[], Config]]) -> tuple[Recipe, list[str]]:
    """The recipe that the first argument names, one of `recipes` or a file's, and the arguments after it."""
    names = ", ".join(recipes)
    if not argv or argv[0] in ("-h", "--help"):
        if argv:
            print(
                f"usage: RECIPE [overrides]\nrecipes: {names}; or FILE.py, FILE.py:FUNCTION\n"
                "RECIPE --help lists its settings"
            )
            raise SystemExit(0)
        raise BadInput(f"name a recipe first: {names}")
    if names_file(argv[0]):
        function, config = load_recipe(argv[0])
        return Recipe(name=function.__name__, config=config, doc=function.__doc__), argv[1:]
    if argv[0] not in recipes:
        raise BadInput(f"no recipe is called {argv[0]!r}{suggestion(argv[0], recipes)}")
    recipe = recipes[argv[0]]
    return Recipe(name=argv[0], config=recipe(), doc=recipe.__doc__), argv[1:]


def parse_with_config(cls: type[T], argv: list[str], config: Config, description: str | None) -> tuple[T, Config]:
    """The arguments of `cls`, and `config` with the overrides among them, such as --method.temperature 0.2."""
    argv, config = _with_method(present_flags(argv), config)
    both = make_dataclass(
        "Command",
        [
            ("arguments", Annotated[cls, tyro.conf.arg(name="")]),
            ("config", Annotated[Config, tyro.conf.arg(name="")], config),
        ],
        kw_only=True,
    )
    parsed: Any = parse(both, argv, description=description)
    return parsed.arguments, parsed.config


def _with_method(argv: list[str], config: Config) -> tuple[list[str], Config]:
    """`config` with the method that --method NAME chooses, whose settings can then be overridden; the other arguments.

    Raises BadInput for an unknown name.
    """
    name, rest = take_flag(argv, "--method", "--method.name")
    return rest, config if name is None else config.with_overrides({"method.name": name.replace("-", "_")})


def take_flag(argv: list[str], *flags: str) -> tuple[str | None, list[str]]:
    """The value of the first of these flags, --flag VALUE or --flag=VALUE, and the other arguments."""
    for at, word in enumerate(argv):
        flag, mark, value = word.partition("=")
        if flag in flags:
            after = at + 1 if mark else at + 2
            return value or "".join(argv[at + 1 : after]), argv[:at] + argv[after:]
    return None, argv


def given_keys(argv: list[str]) -> frozenset[str]:
    """The dotted keys of the settings that `argv` names."""
    return frozenset(current_key(_key(word)) for word in argv if word.startswith("--")) & config_types().keys()


def present_flags(argv: list[str]) -> list[str]:
    """`argv` with the flags of the last release under their present names; a line on stderr says each."""
    present = []
    for word in argv:
        old = _key(word) if word.startswith("--") else ""
        new = current_key(old).replace("_", "-")
        if old and new != old.replace("_", "-"):
            print(f"--{old.replace('_', '-')} is now --{new}", file=sys.stderr)
            word = f"--{new}" + "".join(word.partition("=")[1:])
        present.append(word)
    return present


def _key(flag: str) -> str:
    return flag.partition("=")[0].removeprefix("--").replace("-", "_")
