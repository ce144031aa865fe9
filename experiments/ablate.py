"""The command `simclr-ray ablate` from a checkout: python experiments/ablate.py --help."""

from simclr_ray.cli.ablate import main
from simclr_ray.cli.command import run_command

if __name__ == "__main__":
    run_command(main)
