"""The command `simclr-ray export` from a checkout: python experiments/export.py --help."""

from simclr_ray.cli.command import run_command
from simclr_ray.cli.export import main

if __name__ == "__main__":
    run_command(main)
