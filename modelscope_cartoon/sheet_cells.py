"""A sheet's cells as pixels: pictures made larger or smaller, with round corners, and cards for those that failed."""
from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modelscope_cartoon.lettering import fitting, wrapped, write
from modelscope_cartoon.sheet_axes import Cell

PAPER, INK, MUTED = (250, 246, 239), (45, 39, 34), (125, 113, 101)
_EMPTY, _WARNING = (241, 234, 223), (158, 62, 40)
LEADING = 1.32     # of a line, in sizes of its letters
_RADIUS = 14


class Box(NamedTuple):
    """Where a picture is on the sheet."""
    left: int
    top: int
    width: int
    height: int


def shown(cell: Cell, box: Box) -> np.ndarray:
    """The cell's picture in the size of its box, or an empty cell that says why there is none."""
    if cell.picture and not cell.fault:
        return enlarged(cell.picture, box)
    card = np.full((box.height, box.width, 3), _EMPTY, np.uint8)
    size, room = (19, box.width - 48) if box.width >= 280 else (16, box.width - 36)
    step = round(size * LEADING)
    lines = wrapped(cell.fault or '', room, size, lines=max(1, box.height // step - 4))
    y = (box.height - step * len(lines)) // 2
    for text, colour in (('没有画成 not drawn', _WARNING), *((line, MUTED) for line in lines)):
        write(card, fitting(text, room, size), ((box.width - room) // 2, y), size, colour)
        y += step
    return card


def enlarged(picture: Path, box: Box) -> np.ndarray:
    """The picture in a file, made larger or smaller to fit into `box`; where its shape differs there is a margin."""
    from PIL import Image

    with Image.open(picture) as opened:
        image = opened.convert('RGB')
    scale = min(box.width / image.width, box.height / image.height)
    width, height = (side if side - round(length * scale) <= 1 else round(length * scale)     # a box is whole pixels
                     for side, length in zip((box.width, box.height), image.size))
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    page = Image.new('RGB', (box.width, box.height), _EMPTY)
    page.paste(image, ((box.width - width) // 2, (box.height - height) // 2))
    return np.asarray(page)


def paste(page: np.ndarray, image: np.ndarray, box: Box) -> None:
    """`image` with round corners and a hair of an edge, onto `page`."""
    inside, edge = _masks(box.width, box.height)
    place = page[box.top:box.top + box.height, box.left:box.left + box.width]
    rimmed = image * (1 - edge) + edge * (image * 0.86)
    place[...] = np.rint(rimmed * inside + place * (1 - inside))


@cache
def _masks(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """What of a cell is picture, and what of that its edge: each [H, W, 1], 0..1."""
    from PIL import Image, ImageDraw

    masks = []
    for inset in (0, 1):
        mask = Image.new('L', (width * 4, height * 4))
        corners = (4 * inset, 4 * inset, 4 * (width - inset) - 1, 4 * (height - inset) - 1)
        ImageDraw.Draw(mask).rounded_rectangle(corners, 4 * (_RADIUS - inset), fill=255)
        masks.append(np.asarray(mask.resize((width, height), Image.Resampling.BOX), np.float32)[..., None] / 255)
    return masks[0], masks[0] - masks[1]
