"""The command `simclr-ray report` from a checkout: python experiments/report.py --help."""

from simclr_ray.cli.command import run_command
from simclr_ray.cli.report import main

if __name__ == "__main__":
    run_command(main)
