"""The command `simclr-ray neighbours` from a checkout: python experiments/neighbours.py --help."""

from simclr_ray.cli.command import run_command
from simclr_ray.cli.neighbours import main

if __name__ == "__main__":
    run_command(main)
