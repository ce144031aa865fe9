"""Contact sheets: images in rows, each with a caption, as one PNG."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

SIDE = 160
"""Pixels of an image's longer side."""
GAP, LINE = 8, 14
COLUMNS = 6
BACKGROUND, INK, FRAME = "white", "#222222", "#d62728"


def contact_sheet(
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    captions: Sequence[str],
    *,
    framed: Collection[int] = (),
    columns: int = COLUMNS,
    lines: int = 2,
) -> bytes:
    """A PNG of the images in reading order, each scaled to fit, above so many lines of its caption.

    The images of the numbers `framed` have a frame.
    """
    cell_width, cell_height = SIDE + GAP, SIDE + 4 + LINE * lines + GAP
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell_width + GAP, rows * cell_height + GAP), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = GAP + number % columns * cell_width, GAP + number // columns * cell_height
        height, width = (max(1, round(side * SIDE / max(image.shape[:2]))) for side in image.shape[:2])
        # Small images stay sharp squares: the user shall see the pixels that the encoder saw.
        filter_ = Image.Resampling.NEAREST if max(image.shape[:2]) < SIDE else Image.Resampling.LANCZOS
        scaled = Image.fromarray(image).resize((width, height), filter_)
        place = left + (SIDE - width) // 2, top + (SIDE - height) // 2
        sheet.paste(scaled, place)
        if number in framed:
            edge = (place[0] - 3, place[1] - 3, place[0] + width + 2, place[1] + height + 2)
            draw.rectangle(edge, outline=FRAME, width=3)
        for line, text in enumerate(caption.splitlines()[:lines]):
            draw.text((left, top + SIDE + 3 + LINE * line), _shortened(text, font), INK, font)
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The end of a text that is wider than an image: of a path the name says most."""
    if font.getlength(text) <= SIDE:
        return text
    while text and font.getlength("..." + text) > SIDE:
        text = text[1:]
    return "..." + text
