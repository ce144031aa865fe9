"""Azure's object store on 127.0.0.1 with a container, which fails on demand: Azurite behind a FaultyStore."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pyarrow import fs

from faulty_store import BUCKET, FaultyStore, faulty_store

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The emulator's own, which its documentation publishes."""
AZURITE = shutil.which("azurite-blob")
READY = "successfully listens on "


def uri(path: str, container: str = BUCKET) -> str:
    return f"abfs://{container}@{ACCOUNT}.dfs.core.windows.net/{path}"


def open_there(store: FaultyStore, address: str, key: str = KEY) -> tuple[fs.FileSystem, str]:
    """In place of `object_store.open_store`, whose client has no place for the emulator's key."""
    found = urlsplit(address)
    filesystem = fs.AzureFileSystem(
        ACCOUNT,
        account_key=key,
        blob_storage_authority=store.address,
        dfs_storage_authority=store.address,
        blob_storage_scheme="http",
        dfs_storage_scheme="http",
    )
    return filesystem, f"{found.username}{unquote(found.path)}"


@contextmanager
def azure_store(folder: Path) -> Iterator[FaultyStore]:
    """`folder`: where the emulator may write."""
    assert AZURITE is not None
    options = "--blobHost 127.0.0.1 --blobPort 0 --inMemoryPersistence --skipApiVersionCheck --disableTelemetry"
    emulator = subprocess.Popen([AZURITE, *options.split()], cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        assert emulator.stdout is not None
        address = next(line for line in emulator.stdout if READY in line).partition(READY)[2].strip()
        with faulty_store(address) as store:
            open_there(store, uri(""))[0].create_dir(BUCKET)
            yield store
    finally:
        emulator.kill()
        emulator.communicate()
