"""Philox4x32-10: random words as a pure function of a key and a counter, so that randomness has no state to save.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). Implemented here because the words
decide the views and the order of a run, and library generators change between versions.

The key is the seed (64 bits). The 128 bits of the counter are, from the lowest: item (64), epoch (32), block (24) and
domain (8). No two draws of different meaning share a counter: in ORDER, block 0 of item r is the key of round r, and
block 1 + r of item x is the bit of x in round r.
"""

from __future__ import annotations

import numba
import numpy as np

from simclr_ray.data.jit import kernel

VIEW_A = 0
VIEW_B = 1
ORDER = 2
PREPARE = 3
SYNTHETIC = 5
SUBSET = 6
NOISE = 7
LOCAL = 16
"""Of the first local view; the next ones follow."""
BRANCHES = 64
"""Of stochastic depth in the first view; the next ones follow, local ones after the two whole ones."""

Words = tuple[np.uint64, np.uint64, np.uint64, np.uint64]

# All arithmetic is on uint64 that hold 32 bits: Numba would widen uint32 anyway.
_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


@numba.njit
def philox4x32(c0: np.uint64, c1: np.uint64, c2: np.uint64, c3: np.uint64, k0: np.uint64, k1: np.uint64) -> Words:
    """Four 32-bit words of a counter and a key, all of them uint64 below 2^32."""
    for _ in range(10):
        product_0 = _MULTIPLIER_0 * c0
        product_1 = _MULTIPLIER_1 * c2
        c0, c2 = (product_1 >> _HALF) ^ c1 ^ k0, (product_0 >> _HALF) ^ c3 ^ k1
        c1, c3 = product_1 & _MASK, product_0 & _MASK
        k0 = (k0 + _WEYL_0) & _MASK
        k1 = (k1 + _WEYL_1) & _MASK
    return c0, c1, c2, c3


@numba.njit
def block(seed: int, epoch: int, item: int, domain: int, index: int) -> Words:
    """Words 4 index .. 4 index + 3 of a draw: seed and item 0..2^63 - 1, epoch 0..2^32 - 1."""
    key, low = np.uint64(seed), np.uint64(item)
    high = np.uint64(domain) << np.uint64(24) | np.uint64(index)
    return philox4x32(low & _MASK, low >> _HALF, np.uint64(epoch), high, key & _MASK, key >> _HALF)


@numba.njit
def words(seed: int, epoch: int, item: int, domain: int, count: int) -> np.ndarray:
    """(count,) uint32: the first `count` words of a draw, a multiple of four."""
    drawn = np.empty(count, np.uint32)
    for index in range(count // 4):
        drawn[4 * index : 4 * index + 4] = block(seed, epoch, item, domain, index)
    return drawn


@kernel
def _sort_words(seed: int, epoch: int, domain: int, count: int) -> np.ndarray:
    drawn = np.empty(count, np.uint64)
    for item in range(count):
        high, low, _, _ = block(seed, epoch, item, domain, 0)
        drawn[item] = high << _HALF | low
    return drawn


def sort_words(seed: int, epoch: int, domain: int, count: int) -> np.ndarray:
    """(count,) uint64: one word for each item 0..count - 1. Their stable argsort is a random permutation."""
    assert 0 <= seed < 2**63, seed
    assert 0 <= epoch < 2**32, epoch
    return _sort_words(int(seed), int(epoch), int(domain), int(count))
