"""The command `simclr-ray preview` from a checkout: python experiments/preview.py --help."""

from simclr_ray.cli.command import run_command
from simclr_ray.cli.preview import main

if __name__ == "__main__":
    run_command(main)
