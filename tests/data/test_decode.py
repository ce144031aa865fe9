"""Decoding: the pixels equal Pillow's, and every failure is a BadImage."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from simclr_ray.data.decode import MAX_PIXELS, BadImage, decode


def image(height: int = 48, width: int = 64) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    rng = np.random.default_rng(0)
    planes = np.stack([4 * x + y, 255 - 3 * y, 90 + 60 * np.sin(x / 3)], axis=2) + rng.integers(
        0, 20, (height, width, 3)
    )
    return Image.fromarray((planes % 256).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pillow(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


ENCODED = {
    "jpeg": encode(image(), "JPEG"),
    "jpeg-444": encode(image(47, 61), "JPEG", subsampling=0, quality=95),
    "jpeg-progressive": encode(image(), "JPEG", progressive=True),
    "jpeg-rgb": encode(image(), "JPEG", keep_rgb=True),
    "jpeg-grey": encode(image().convert("L"), "JPEG"),
    "jpeg-cmyk": encode(image().convert("CMYK"), "JPEG"),
    "jpeg-1x1": encode(image(1, 1), "JPEG"),
    "png": encode(image(), "PNG"),
    "png-grey": encode(image().convert("L"), "PNG"),
    "png-one-bit": encode(image().convert("1"), "PNG"),
    "png-palette": encode(image().quantize(17), "PNG", transparency=0),
    "png-transparent": encode(image().convert("RGBA"), "PNG"),
    "webp": encode(image(), "WEBP"),
    "webp-lossless": encode(image(), "WEBP", lossless=True),
    "gif": encode(image(), "GIF"),
    "bmp": encode(image(), "BMP"),
    "ppm": encode(image(), "PPM"),
    "tiff": encode(image(), "TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_pixels_equal_pillows(kind: str) -> None:
    image = decode(ENCODED[kind])
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, pillow(ENCODED[kind]))


def test_16_bit_grey_keeps_its_upper_bits() -> None:
    levels = np.arange(0, 65536, 37, dtype=np.uint16)[:1600].reshape(40, 40)
    image = decode(encode(Image.fromarray(levels), "PNG"))
    np.testing.assert_array_equal(image, np.repeat((levels >> 8).astype(np.uint8)[:, :, None], 3, axis=2))


@pytest.mark.parametrize("brightest", [65535, 4095])
def test_16_bit_pgm_keeps_its_upper_bits(brightest: int) -> None:
    ramp = np.linspace(0, brightest, 256).astype(">u2").reshape(16, 16)
    found = decode(b"P5\n16 16\n%d\n" % brightest + ramp.tobytes())
    assert found.shape == (16, 16, 3)
    np.testing.assert_allclose(found[..., 0], ramp / brightest * 255, atol=1)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_of_32_bits_are_bad(kind: type) -> None:
    ramp = Image.fromarray(np.arange(256).astype(kind).reshape(16, 16))
    with pytest.raises(BadImage, match="pixels of 32 bits"):
        decode(encode(ramp, "TIFF"))


def test_exif_orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encode(image(), "JPEG", exif=exif)).shape == (48, 64, 3)


def test_a_jpeg_with_stray_bytes_between_markers_is_decoded_by_pillow() -> None:
    jpeg = ENCODED["jpeg"]
    table = jpeg.index(b"\xff\xdb")
    np.testing.assert_array_equal(decode(jpeg[:table] + b"\x00\x00" + jpeg[table:]), decode(jpeg))


def test_a_colour_profile_is_ignored() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    encoded = encode(image(), "JPEG", icc_profile=profile)
    np.testing.assert_array_equal(decode(encoded), pillow(encoded))


@pytest.mark.parametrize("encoded", [b"", b"\xff\xd8", b"no image", b"<html>", b"\x89PNG\r\n\x1a\n", bytes(1000)])
def test_bytes_that_are_no_image_are_bad(encoded: bytes) -> None:
    with pytest.raises(BadImage):
        decode(encoded)


@pytest.mark.parametrize("kind", [kind for kind in ENCODED if kind not in ("gif", "tiff")])
def test_a_truncated_image_is_bad(kind: str) -> None:
    # A PNG may lack its last chunk and checksums, 20 bytes, and a one-bit row is 8 bytes: the pixels are then whole.
    whole = len(ENCODED[kind]) - (30 if kind.startswith("png") else 0)
    for length in range(0, whole, max(1, whole // 150)):
        with pytest.raises(BadImage):
            decode(ENCODED[kind][:length])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ENCODED)
def test_damaged_bytes_give_an_image_or_bad_image(kind: str) -> None:
    rng = np.random.default_rng(0)
    whole = np.frombuffer(ENCODED[kind], np.uint8)
    bad = 0
    for trial in range(300):
        damaged = whole.copy()
        # Half of the damage in the headers, where most of the parsers' code is.
        reach = min(200, whole.size) if trial % 2 else whole.size
        damaged[rng.integers(0, reach, rng.integers(1, 5))] = rng.integers(0, 256)
        length = whole.size if trial % 3 else rng.integers(0, whole.size)
        try:
            assert decode(damaged[:length].tobytes()).shape[2] == 3
        except BadImage:
            bad += 1
    assert bad > 20


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_bad_before_it_is_decoded() -> None:
    side = int(MAX_PIXELS**0.5) + 1
    jpeg = bytearray(ENCODED["jpeg"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    for bomb in (bytes(jpeg), png):
        with pytest.raises(BadImage, match="pixels"):
            decode(bomb)


def test_decoding_jpeg_does_not_import_pillow() -> None:
    code = """if True:
        import sys
        from simclr_ray.data.decode import decode
        decode(sys.stdin.buffer.read())
        print("PIL" in sys.modules)
    """
    answer = subprocess.run([sys.executable, "-c", code], input=ENCODED["jpeg"], capture_output=True, check=True)
    assert answer.stdout.strip() == b"False"
