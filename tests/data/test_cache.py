"""The decoded cache of a machine whose files are damaged, whose disk is full, or whose store fails."""

from pathlib import Path

import numpy as np
import pytest

from simclr_ray.config import BadInput
from simclr_ray.data.cache import PixelCache, open_cache
from simclr_ray.data.dataset import Dataset, SliceReader
from simclr_ray.data.decode import decode
from small_runs import synthetic_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d", 100)


def require_whole(cache: PixelCache | None, dataset: Dataset) -> None:
    assert cache is not None
    rows = [encoded for table in SliceReader(dataset).rows(0, dataset.rows) for encoded in table["image"].to_pylist()]
    for row, encoded in enumerate(rows):
        np.testing.assert_array_equal(cache.image(row), decode(encoded))


@pytest.mark.parametrize("suffix", [".pixels", ".npz"])
@pytest.mark.parametrize("left", [0, 100, None])
def test_a_damaged_cache_is_built_again(dataset: Dataset, tmp_path: Path, suffix: str, left: int | None) -> None:
    mapped = open_cache(dataset, 1.0, str(tmp_path))
    (path,) = tmp_path.glob(f"*{suffix}")
    content = path.read_bytes()
    path.unlink()  # what another process has mapped stays whole
    if left is not None:
        path.write_bytes(content[:left])
    assert open_cache(dataset, 1.0, str(tmp_path), build=False) is None
    require_whole(open_cache(dataset, 1.0, str(tmp_path)), dataset)
    require_whole(mapped, dataset)
    assert path.read_bytes() == content


def test_a_build_that_was_killed_leaves_nothing_behind(dataset: Dataset, tmp_path: Path) -> None:
    open_cache(dataset, 1.0, str(tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_suffix(f".part{path.suffix}"))
    require_whole(open_cache(dataset, 1.0, str(tmp_path)), dataset)
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".lock"} <= names


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_that_was_asked_for_has_to_have_room(dataset: Dataset, full_disk: Path) -> None:
    with pytest.raises(BadInput, match="No space left.*resources.cache_dir"):
        open_cache(dataset, 1.0, str(full_disk / "c"))


def test_without_room_for_temporary_files_images_are_decoded_each_time(dataset: Dataset, full_disk: Path) -> None:
    assert open_cache(dataset, 1.0, None) is None


def test_a_folder_that_cannot_be_made_is_named_or_done_without(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="resources.cache_dir"):
        open_cache(dataset, 1.0, str(tmp_path / "file" / "c"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    assert open_cache(dataset, 1.0, None) is None


def test_a_store_that_fails_is_no_matter_of_the_cache(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise OSError("503 Slow Down")

    monkeypatch.setattr(SliceReader, "read_slice", failing)
    with pytest.raises(OSError, match="503 Slow Down"):
        open_cache(dataset, 1.0, str(tmp_path))


def test_a_user_without_a_name_has_a_cache(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number of its own."""

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.setattr("getpass.getuser", nameless)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert open_cache(dataset, 1.0, None) is not None
