"""What every kind of object store must do with files and folders."""

from __future__ import annotations

import os
import pickle

import pytest

from simclr_ray.storage.location import Location


def assert_keeps_files(folder: Location, large: int) -> None:
    """Writes, reads, lists, replaces and deletes files in an empty folder, one of them of `large` bytes."""
    contents = {"a.json": b"{}", "b/large": os.urandom(large), "b/odd name%?#+é": b"1", ".hidden": b"", "z": b""}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    assert [entry.name for entry in folder.files()] == sorted(contents.keys() - {".hidden"})
    assert {entry.name: entry.size for entry in folder.files()}["b/large"] == large
    assert (folder.folders(), folder.is_folder(), (folder / "b").is_folder()) == (["b"], True, True)
    for name, content in contents.items():
        again = pickle.loads(pickle.dumps(folder / name))  # for another process: the URI alone
        assert (again.read_bytes(), again.size(), again.exists()) == (content, len(content), True)
    (folder / "a.json").write_bytes(b"new")
    assert (folder / "a.json").read_bytes() == b"new"
    (folder / "b").delete()
    (folder / "a.json").delete()
    (folder / "never").delete()
    assert [entry.name for entry in folder.files()] == ["z"]
    assert folder.folders() == []
    assert not (folder / "a.json").exists()
    with pytest.raises(FileNotFoundError):
        (folder / "a.json").read_bytes()
