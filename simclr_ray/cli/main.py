"""`simclr-ray COMMAND ...`: the entry point of all commands, which `pip install` puts on the PATH."""

from __future__ import annotations

from importlib import import_module

from simclr_ray.cli.command import run_command
from simclr_ray.config import BadInput
from simclr_ray.config.suggest import suggestion

COMMANDS = (
    *("pretrain", "prepare", "sweep", "ablate", "evaluate", "embed", "neighbours", "export"),
    *("preview", "report", "plan", "status", "demo"),
)
USAGE = f"usage: simclr-ray COMMAND ...\ncommands: {', '.join(COMMANDS)}\nsimclr-ray COMMAND --help lists its settings"


def main(argv: list[str]) -> int | None:
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if not argv:
        raise BadInput(f"name a command first: {', '.join(COMMANDS)}")
    if argv[0] not in COMMANDS:
        raise BadInput(f"no command is called {argv[0]!r}{suggestion(argv[0], COMMANDS)}")
    command = import_module(f"simclr_ray.cli.{argv[0]}")  # only this one: some take seconds to import
    code: int | None = command.main(argv[1:])
    return code


def entry() -> None:
    """The console script."""
    run_command(main)
