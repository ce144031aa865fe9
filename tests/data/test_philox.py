"""Random words: the published algorithm, our layout of its counter, and words that must never change."""

import itertools

import numpy as np
import pytest

from simclr_ray.data import philox

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_random123(counter: tuple, key: tuple, expected: tuple) -> None:
    assert philox.philox4x32(*(np.uint64(word) for word in (*counter, *key))) == expected


def test_draws_of_different_meaning_never_share_a_counter() -> None:
    values = {
        "seed": (0, 1, 2**32, 2**63 - 1),
        "epoch": (0, 1, 2**32 - 1),
        "item": (0, 1, 2**32, 2**63 - 1),
        "domain": range(6),
        "index": (0, 1, 7),
    }
    draws = [philox.block(*(int(v) for v in draw)) for draw in itertools.product(*values.values())]
    assert len(set(draws)) == len(draws)


def test_words_are_the_blocks_in_order() -> None:
    blocks = [philox.block(5, 6, 7, philox.ORDER, index) for index in range(3)]
    assert philox.words(5, 6, 7, philox.ORDER, 12).tolist() == list(itertools.chain(*blocks))


def test_words_are_pinned() -> None:
    assert philox.words(2**62 + 3, 17, 2**40 + 1, philox.VIEW_B, 4).tolist() == [
        2805020859,
        1717553534,
        3855743534,
        829376456,
    ]
    assert philox.sort_words(1234, 5, philox.ORDER, 3).tolist() == [
        8640834672980195783,
        7317280278705184141,
        6457404436972217396,
    ]


def test_sort_words_give_another_uniform_permutation_each_epoch() -> None:
    orders = np.stack([np.argsort(philox.sort_words(0, epoch, philox.ORDER, 50)) for epoch in range(400)])
    assert (np.sort(orders, axis=1) == np.arange(50)).all()
    # The mean of 400 positions uniform on 0..49 has a standard deviation of 0.72.
    assert np.abs(orders.mean(axis=0) - 24.5).max() < 4
    assert np.unique(orders, axis=0).shape[0] == 400


def test_words_are_uniform() -> None:
    words = philox.sort_words(3, 0, philox.SYNTHETIC, 100_000)
    bits = np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1).mean(axis=0)
    assert np.abs(bits - 0.5).max() < 0.01
