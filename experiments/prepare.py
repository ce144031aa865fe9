"""The command `simclr-ray prepare` from a checkout: python experiments/prepare.py --help."""

from simclr_ray.cli.command import run_command
from simclr_ray.cli.prepare import main

if __name__ == "__main__":
    run_command(main)
