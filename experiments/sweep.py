"""The command `simclr-ray sweep` from a checkout: python experiments/sweep.py --help."""

from simclr_ray.cli.command import run_command
from simclr_ray.cli.sweep import main

if __name__ == "__main__":
    run_command(main)
