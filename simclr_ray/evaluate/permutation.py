"""The paired permutation test of two encoders that classified the same images: is the difference more than luck?"""

from __future__ import annotations

from math import exp, lgamma, log

import numpy as np
from jaxtyping import Bool


def permutation_p(ours: Bool[np.ndarray, " n"], other: Bool[np.ndarray, " n"]) -> float:
    """The two-sided p-value of the difference in accuracy; row i of both says who was right on image i.

    If the encoders were equally good, whose answer is whose would be chance, image by image: p is the part of the 2^n
    ways to swap them whose accuracies differ by as much or more. It is exact, and nothing is drawn for it: an image
    on which both are right, or both wrong, counts for nothing either way, and each other one goes to either with
    probability 1/2, so how many go to one of them is binomial (McNemar 1947).
    """
    wins, losses = int((ours & ~other).sum()), int((other & ~ours).sum())
    differing = wins + losses
    # Logarithms, as 2^n has no place in a float.
    ways = (lgamma(differing + 1) - lgamma(k + 1) - lgamma(differing - k + 1) for k in range(min(wins, losses) + 1))
    tail = sum(exp(one - differing * log(2)) for one in ways)
    return min(1.0, 2 * tail)
