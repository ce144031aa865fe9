"""Encoded picture to RGB pixels, and one error for every way in which that can fail.

JPEG goes through libjpeg-turbo (simplejpeg), bit for bit what Pillow gives. What simplejpeg will not take, such as CMYK
or stray bytes between markers, goes to Pillow, so that the same pictures are good as in torchvision's ImageFolder. Also
as there: transparency is dropped, not composited, and the EXIF orientation is not applied.
"""

from __future__ import annotations

import io

import numpy as np
import simplejpeg

MAX_PIXELS = 89_478_485
"""Larger pictures are refused: Pillow's warning level for decompression bombs, 256 MiB of RGB."""

# What ImageFolder lists, and GIF. Pillow's other decoders are old, rarely used and not fuzzed by our tests.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF")


class BadPicture(ValueError):
    """These bytes are no picture that can be decoded; the message is the decoder's reason."""


def decode(encoded: bytes) -> np.ndarray:
    """(h, w, 3) uint8 RGB. Raises BadPicture for anything empty, truncated, corrupt, unknown or beyond MAX_PIXELS.

    16-bit grey keeps its upper 8 bits, where Pillow would clip it to white.
    """
    if encoded[:2] == b"\xff\xd8":
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
            _require_size(height, width)
            return simplejpeg.decode_jpeg(encoded)
        except BadPicture:
            raise
        except ValueError:
            pass
    return _decode_with_pillow(encoded)


def _decode_with_pillow(encoded: bytes) -> np.ndarray:
    # Imported here: 10 MB and 50 ms that a worker on JPEGs never needs.
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as picture:
            _require_size(picture.height, picture.width)
            if picture.mode.startswith("I;16"):
                grey = (np.asarray(picture) >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return np.array(picture.convert("RGB"))
    # OSError: truncated, corrupt or unknown. SyntaxError and ValueError: broken chunks of PNG and headers of PPM.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadPicture(str(error)) from error


def _require_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise BadPicture(f"{width} x {height} pixels are more than {MAX_PIXELS}")
