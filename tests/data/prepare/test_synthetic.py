"""The synthetic images: the same on every machine, labelled, and not classified by raw pixels."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from simclr_ray.config import BadInput
from simclr_ray.data.decode import decode
from simclr_ray.data.prepare import synthetic


def some(split: str, start: int, stop: int, size: int = 32) -> pa.Table:
    return next(synthetic.read(split, size, pa.table({"index": list(range(start, stop))})))


def test_an_image_depends_on_its_split_and_number_alone() -> None:
    together = some("train", 0, 20)
    assert some("train", 13, 14)["image"][0] == together["image"][13]
    assert len(set(together["image"].to_pylist() + some("test", 0, 20)["image"].to_pylist())) == 40
    # Written down once: another value means other data on other machines, or for old fingerprints.
    digest = hashlib.sha256(b"".join(synthetic.draw("train", i).tobytes() for i in range(10))).hexdigest()
    assert digest[:16] == "e5af7bc887ba831e"


def test_labels_are_balanced_and_named() -> None:
    labels = some("train", 0, 40)["label"].to_pylist()
    assert np.bincount(labels).tolist() == [4] * len(synthetic.CLASSES)


@pytest.mark.parametrize("size", [8, 33, 96])
def test_other_sizes_are_drawn(size: int) -> None:
    image = decode(some("train", 3, 4, size)["image"][0].as_py())
    assert image.shape == (size, size, 3)
    assert image.std() > 20


def test_the_same_image_at_another_size_is_the_same_scene() -> None:
    small, large = synthetic.draw("train", 4, 32).astype(float), synthetic.draw("train", 4, 64).astype(float)
    shrunk = large.reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.corrcoef(small.ravel(), shrunk.ravel())[0, 1] > 0.7


def test_raw_pixels_classify_badly() -> None:
    """kNN on raw pixels: a little above chance, well below the accuracy on features."""

    def centred(split: str, count: int) -> np.ndarray:
        flat = np.stack([synthetic.draw(split, i) for i in range(count)]).reshape(count, -1).astype(np.float32)
        flat -= flat.mean(1, keepdims=True)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    nearest = np.argsort(-(centred("test", 500) @ centred("train", 2000).T), axis=1)[:, :10] % 10
    votes = np.array([np.bincount(row, minlength=10).argmax() for row in nearest])
    accuracy = (votes == np.arange(500) % 10).mean()
    assert 0.1 < accuracy < 0.35


def test_the_spec_gives_split_size_and_number() -> None:
    assert synthetic.parse("synthetic:40") == ("train", 32, 40)
    assert synthetic.parse("synthetic:40:64px:test") == ("test", 64, 40)
    for wrong in ("synthetic:", "synthetic:0", "synthetic:ten", "synthetic:4:5px", "synthetic:4:val"):
        with pytest.raises(BadInput, match="must read synthetic:N"):
            synthetic.parse(wrong)
