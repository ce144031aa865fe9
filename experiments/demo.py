"""The command `simclr-ray demo` from a checkout: python experiments/demo.py --help."""

from simclr_ray.cli.command import run_command
from simclr_ray.cli.demo import main

if __name__ == "__main__":
    run_command(main)
