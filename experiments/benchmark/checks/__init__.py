"""The checks of gpu.py, one file for each group of them."""

from checks import compiled, feed, memory, numerics, preflight, rates, runs, workers

CHECKS = (
    *preflight.CHECKS,
    *numerics.CHECKS,
    *memory.CHECKS,
    *rates.CHECKS,
    *compiled.CHECKS,
    *workers.CHECKS,
    *feed.CHECKS,
    *runs.CHECKS,
)
"""In the order in which they run: what explains the failure of others comes first."""
