"""A random permutation that can be evaluated at single positions, without an array of all of them.

The swap-or-not shuffle: Hoang, Morris, Rogaway, "An Enciphering Scheme Based on a Card Shuffle" (CRYPTO 2012,
arXiv:1208.1176). A round pairs x with K - x mod n, for a random K, and swaps each pair or not by a random bit.
"""

from __future__ import annotations

import numpy as np

from simclr_ray.data.jit import kernel
from simclr_ray.data.philox import ORDER, block

# Each round halves the dependence of a slice's new position on its old one. The total variation distance from equally
# likely permutations, computed exactly for n = 2 to 7, is below 1e-13 after 64 rounds (n = 4 is the slowest). A round
# draws n / 2 bits, so fewer than log2(n!) / (n / 2) rounds cannot reach all orders: 51 for 2^27 slices. 128 is twice
# what either needs.
ROUNDS = 128


def swap_or_not(index: int, count: int, seed: int, epoch: int) -> int:
    """The image of `index` under the permutation of 0..count - 1 that `seed` and `epoch` give."""
    assert 0 <= index < count < 2**62, (index, count)
    assert 0 <= seed < 2**63, seed
    assert 0 <= epoch < 2**32, epoch
    return _swap_or_not(int(index), int(count), int(seed), int(epoch))


@kernel
def _swap_or_not(index: int, count: int, seed: int, epoch: int) -> int:
    for r in range(ROUNDS):
        high, low, _, _ = block(seed, epoch, r, ORDER, 0)
        key = np.int64((high << np.uint64(32) | low) % np.uint64(count))  # biased by less than count / 2^64
        partner = int(key) - index
        if partner < 0:
            partner += count
        bits, _, _, _ = block(seed, epoch, max(index, partner), ORDER, 1 + r)  # the same for both of a pair
        if bits & np.uint64(1):
            index = partner
    return index
