"""The metadata of a safetensors file in memory: safetensors reads a disk alone, and writes them in a random order."""

from __future__ import annotations

import json
from typing import Any


def with_metadata(content: bytes, metadata: dict[str, str]) -> bytes:
    """The file with metadata in the given order: equal tensors and metadata give equal bytes."""
    header, data_start = _header(content)
    text = json.dumps({"__metadata__": metadata} | header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # in this format the data begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[data_start:]


def metadata_of(content: bytes) -> dict[str, str]:
    """The metadata of a valid file, {} where it has none."""
    return _header(content)[0].get("__metadata__", {})


def _header(content: bytes) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and the offset of its end: a little-endian u64, then so many bytes of JSON."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), end
