"""The command `simclr-ray plan` from a checkout: python experiments/plan.py --help."""

from simclr_ray.cli.command import run_command
from simclr_ray.cli.plan import main

if __name__ == "__main__":
    run_command(main)
