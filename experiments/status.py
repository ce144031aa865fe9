"""The command `simclr-ray status` from a checkout: python experiments/status.py --help."""

from simclr_ray.cli.command import run_command
from simclr_ray.cli.status import main

if __name__ == "__main__":
    run_command(main)
