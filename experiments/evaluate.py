"""The command `simclr-ray evaluate` from a checkout: python experiments/evaluate.py --help."""

from simclr_ray.cli.command import run_command
from simclr_ray.cli.evaluate import main

if __name__ == "__main__":
    run_command(main)
