"""The command `simclr-ray pretrain` from a checkout: python experiments/pretrain.py --help."""

from simclr_ray.cli.command import run_command
from simclr_ray.cli.pretrain import main

if __name__ == "__main__":
    run_command(main)
