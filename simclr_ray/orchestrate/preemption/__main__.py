"""`python -m simclr_ray.orchestrate.preemption`, which the files of clusters/ start beside `ray start`."""

from __future__ import annotations

import sys

import tyro

from simclr_ray.orchestrate.preemption import watcher

if __name__ == "__main__":
    sys.exit(watcher.main(tyro.cli(watcher.Arguments, description=watcher.__doc__)))
