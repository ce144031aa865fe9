"""The command `simclr-ray embed` from a checkout: python experiments/embed.py --help."""

from simclr_ray.cli.command import run_command
from simclr_ray.cli.embed import main

if __name__ == "__main__":
    run_command(main)
