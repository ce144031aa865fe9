"""Which residual branches a view keeps under stochastic depth: a pure function of seed, epoch, sample id, view, layer.

So a mask is the same on any number of workers, in both forwards of a pass, and after a resume (Huang et al. 2016, arXiv
1603.09382, where all images of a batch share one; here every row has its own, as in torchvision and timm).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simclr_ray.data.jit import kernel
from simclr_ray.data.philox import BRANCHES, block

CALLS = 4
"""Some networks call one layer for several branches of a block: each call has its own word of a Philox block's four."""


def kept_branches(seed: int, epoch: int, ids: np.ndarray, views: Sequence[int], rates: Sequence[float]) -> np.ndarray:
    """(n, views, layers, CALLS) bool: False where the branch is dropped, with probability `rates[layer]`.

    `ids` (n,): sample ids. `views`: their numbers, 0 and 1 the whole ones, 2 the first local one.
    """
    kept = np.empty((len(ids), len(views), len(rates), CALLS), np.bool_)
    numbers = np.array(views, np.int64)
    _draw(int(seed), int(epoch), ids.astype(np.int64), numbers, np.array(rates, np.float64), kept)
    return kept


@kernel
def _draw(seed: int, epoch: int, ids: np.ndarray, views: np.ndarray, rates: np.ndarray, kept: np.ndarray) -> None:
    for i in range(len(ids)):
        for j in range(len(views)):
            for layer in range(len(rates)):
                drawn = block(seed, epoch, ids[i], BRANCHES + views[j], layer)
                for call in range(CALLS):
                    kept[i, j, layer, call] = drawn[call] * 2.0**-32 >= rates[layer]
