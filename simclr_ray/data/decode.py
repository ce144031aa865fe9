"""Decodes an encoded image to RGB pixels; every failure is a BadImage.

JPEG is decoded by libjpeg-turbo (simplejpeg), bitwise equal to Pillow. CMYK, and what simplejpeg rejects, such as stray
bytes between markers, is decoded by Pillow, so that the same images can be decoded as by torchvision's ImageFolder. As
there, transparency is dropped, not composited, and the EXIF orientation is not applied.
"""

from __future__ import annotations

import io

import numpy as np
import simplejpeg

MAX_PIXELS = 89_478_485
"""Larger images are refused: Pillow's warning level for decompression bombs, 256 MiB of RGB."""

# Pillow converts CMYK and YCCK in another way.
_PLAIN_COLOURS = ("YCbCr", "RGB", "Gray")

# The formats that ImageFolder lists, and GIF. Pillow's other decoders are old, rarely used and not fuzzed by our tests.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF")


class BadImage(ValueError):
    """The bytes cannot be decoded as an image; the message is the decoder's reason."""


def decode(encoded: bytes) -> np.ndarray:
    """(h, w, 3) uint8 RGB. Raises BadImage for anything empty, truncated, corrupt, unknown or beyond MAX_PIXELS.

    16-bit grey keeps its upper 8 bits, where Pillow would clip it to white. Pixels of 32 bits, or floats, are refused:
    nothing says which of their values are black and white.
    """
    image = _decode_plain_jpeg(encoded)
    return _decode_with_pillow(encoded) if image is None else image


def _decode_plain_jpeg(encoded: bytes) -> np.ndarray | None:
    """The pixels if simplejpeg decodes the JPEG without a warning; None: left to Pillow."""
    if encoded[:2] != b"\xff\xd8":
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        if colours not in _PLAIN_COLOURS or height * width > MAX_PIXELS:
            return None
        return simplejpeg.decode_jpeg(encoded)
    # KeyError: a subsampling for which simplejpeg has no name.
    except (ValueError, KeyError):
        return None


def _decode_with_pillow(encoded: bytes) -> np.ndarray:
    # Imported here: 10 MB and 50 ms that a data worker never needs for JPEGs.
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            if image.height * image.width > MAX_PIXELS:
                raise BadImage(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}")
            # Pillow reads a PPM of more than 8 bits as 32-bit integers, scaled to 16 bits.
            if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
                grey = (np.asarray(image) >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            if image.mode in ("I", "F"):
                raise BadImage("pixels of 32 bits: convert them to 8 or 16")
            return np.array(image.convert("RGB"))
    except UnidentifiedImageError:  # its message holds an address in memory, different each time
        raise BadImage("not an image, or of an unknown format") from None
    # What 600,000 damaged files raised. OSError: truncated, corrupt, unknown. SyntaxError, ValueError: broken chunks of
    # PNG, headers of PPM.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImage(str(error)) from error
