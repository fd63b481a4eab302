"""A sheet as one picture: a warm page, pictures with round corners, labels in any script."""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modelscope_cartoon import metadata
from modelscope_cartoon.errors import OutputError
from modelscope_cartoon.files import write_file
from modelscope_cartoon.formats import format_of_suffix
from modelscope_cartoon.lettering import Colour, fitting, text_width, wrapped, write
from modelscope_cartoon.sheet_axes import Cell, Label, Section, Sheet
from modelscope_cartoon.sheet_cells import INK, LEADING, MUTED, PAPER, Box, paste, shown

_LINE, _ACCENT = (228, 219, 206), (198, 101, 61)
_MARGIN, _GAP, _BAND_GAP = 72, 20, 36
_MOST_COLUMNS, _SMALLEST, _LARGEST = 6, 224, 512     # side by side; pixels of a cell's longer side
_WIDTH, _WIDE, _PIXELS = 1640, 2240, 48 * 2**20      # aims: of a row of small or large pictures; of all cells together
_MEDIUM, _SMALL = 500, 18
_DOT = ' · '
_LABELS = ('aigc', 'iptc')


@dataclass(frozen=True)
class Plan:
    """Sizes that all of a sheet's sections share, in pixels."""
    cell: tuple[int, int]
    columns: int
    gutter: int

    @property
    def inner(self) -> int:
        return self.gutter + self.columns * (self.cell[0] + _GAP) - _GAP

    @property
    def title_size(self) -> int:
        return min(46, max(30, self.inner // 26))


class Page:
    """Paper that grows downwards: first everything is placed, then `image` is drawn."""

    def __init__(self, width: int):
        self.width, self.y = width, _MARGIN
        self.words: list[tuple[str, int, int, int, Colour, int]] = []
        self.lines: list[tuple[int, int, int, int, Colour]] = []
        self.cells: list[tuple[Cell, Box]] = []

    def line(self, text: str, x: int, size: int, colour: Colour, weight: int = 400) -> None:
        """A line of text at the present height, and down to the next line."""
        self.words.append((text, x, self.y + round(size * 1.02), size, colour, weight))
        self.y += round(size * LEADING)

    def image(self) -> np.ndarray:
        page = np.full((self.y + _MARGIN, self.width, 3), PAPER, np.uint8)
        for left, top, width, height, colour in self.lines:
            page[top:top + height, left:left + width] = colour
        for cell, box in self.cells:
            paste(page, shown(cell, box), box)
        for text, x, y, size, colour, weight in self.words:
            write(page, text, (x, y), size, colour, weight)
        return page


def write_sheet(sheet: Sheet, target: Path) -> Path:
    """The sheet as a PNG, JPEG or WebP with the labels that say it is made by AI; recipes are its pictures' own."""
    from PIL import Image

    image, _ = draw_sheet(sheet)
    container = format_of_suffix(target.suffix).name.upper()
    try:
        data = metadata.write(Image.fromarray(image), container, None, _LABELS)
    except (OSError, ValueError) as error:     # JPEG and WebP have a largest side
        raise OutputError(f'{target}: {image.shape[1]} x {image.shape[0]} pixels can\'t be written as {container} '
                          f'({error}); use a name that ends in .png.') from error
    return write_file(target, data)


def draw_sheet(sheet: Sheet) -> tuple[np.ndarray, list[tuple[Cell, Box]]]:
    """The sheet, uint8 RGB, and where each of its cells is."""
    plan = plan_of(sheet)
    page = Page(plan.inner + 2 * _MARGIN)
    _heading(page, sheet, plan)
    for section in sheet.sections:
        _section(page, section, plan)
    _footer(page, sheet, plan)
    return page.image(), page.cells


def plan_of(sheet: Sheet) -> Plan:
    """Cells as large as the page's aims allow, in the shape of the first picture that is there."""
    width, height = next((_size(cell) for cell in sheet.cells if cell.picture and not cell.fault), (1, 1))
    most = max(len(section.columns) for section in sheet.sections)
    columns = math.ceil(most / math.ceil(most / _MOST_COLUMNS))
    gutter = max((_gutter(label) for section in sheet.sections for label in section.rows), default=0)
    room = ((_WIDE if min(width, height) >= _LARGEST else _WIDTH) - gutter - _GAP * (columns - 1)) // columns
    side = min(max(room, _SMALLEST), _LARGEST, math.isqrt(_PIXELS // len(sheet.cells)))
    scale = side / max(width, height)
    return Plan((max(1, round(width * scale)), max(1, round(height * scale))), columns, gutter)


def _size(cell: Cell) -> tuple[int, int]:
    from PIL import Image
    with Image.open(cell.picture) as picture:
        return picture.size


def _gutter(label: Label) -> int:
    if not any(label):
        return 0
    wide = max(text_width(label.main, 26, _MEDIUM) if len(label.main) < 12 else 200, text_width(label.sub, _SMALL))
    return min(220, max(60, wide)) + 28


def _heading(page: Page, sheet: Sheet, plan: Plan) -> None:
    page.lines.append((_MARGIN, page.y, 56, 6, _ACCENT))
    page.y += 26
    for line in _balanced(sheet.title, plan.inner, plan.title_size):
        page.line(line, _MARGIN, plan.title_size, INK, _MEDIUM)
    for line in wrapped(sheet.note, plan.inner, 22, lines=3):
        page.y += 6
        page.line(line, _MARGIN, 22, MUTED)


def _balanced(title: str, width: int, size: int) -> list[str]:
    """In as few lines as there must be, all about as long."""
    lines = wrapped(title, width, size, _MEDIUM, lines=4)
    narrower = (wrapped(title, width * percent // 100, size, _MEDIUM, lines=4) for percent in range(50, 100, 4))
    as_short = (other for other in narrower if len(other) == len(lines) and other[-1][-1] != '…')
    return next(as_short, lines) if len(lines) > 1 else lines


def _section(page: Page, section: Section, plan: Plan) -> None:
    page.y += 40
    if section.title:
        page.lines.append((_MARGIN, page.y, plan.inner, 1, _LINE))
        page.y += 30
        for line in wrapped(section.title, plan.inner, 28, _MEDIUM, lines=2):
            page.line(line, _MARGIN, 28, INK, _MEDIUM)
        page.y += 22
    for band in _bands(section, plan.columns):
        _band(page, band, plan)
        page.y += _BAND_GAP
    page.y -= _BAND_GAP


def _bands(section: Section, most: int) -> Iterator[Section]:
    """More columns than there is room for go below each other."""
    for start in range(0, len(section.columns), most):
        part = slice(start, start + most)
        yield Section(section.title, section.columns[part], section.rows, [row[part] for row in section.cells])


def _band(page: Page, band: Section, plan: Plan) -> None:
    (width, height), left = plan.cell, _MARGIN + plan.gutter
    if any(map(any, band.columns)):
        _column_labels(page, band.columns, left, width)
    for label, row in zip(band.rows, band.cells):
        _row_label(page, label, plan)
        for i, cell in enumerate(row):
            page.cells.append((cell, Box(left + i * (width + _GAP), page.y, width, height)))
        page.y += height + _GAP
    page.y -= _GAP


def _column_labels(page: Page, labels: list[Label], left: int, width: int) -> None:
    """Each at the foot of the space that the tallest of them needs."""
    blocks = [list(_lines(label, width - 4, 3)) for label in labels]
    top, tall = page.y, max(map(_tall, blocks))
    for i, block in enumerate(blocks):
        page.y = top + tall - _tall(block)
        for text, size, colour, weight in block:
            page.line(text, left + 2 + i * (width + _GAP), size, colour, weight)
    page.y = top + tall + 12


def _row_label(page: Page, label: Label, plan: Plan) -> None:
    """Halfway down the row."""
    top, block = page.y, list(_lines(label, plan.gutter - 28, max(1, plan.cell[1] // 30 - 1)))
    page.y += max(0, (plan.cell[1] - _tall(block)) // 2)
    for text, size, colour, weight in block:
        page.line(text, _MARGIN, size, colour, weight)
    page.y = top


def _lines(label: Label, width: int, most: int) -> Iterator[tuple[str, int, Colour, int]]:
    """(text, size, colour, weight) of a label's lines: large where the words are few."""
    size, weight = (26, _MEDIUM) if text_width(label.main, 26, _MEDIUM) <= width else (20, 400)
    for line in wrapped(label.main, width, size, weight, lines=most):
        yield line, size, INK, weight
    for line in wrapped(label.sub, width, _SMALL, lines=3):
        yield line, _SMALL, MUTED, 400


def _tall(block: list[tuple[str, int, Colour, int]]) -> int:
    return sum(round(size * LEADING) for _, size, _, _ in block)


def _footer(page: Page, sheet: Sheet, plan: Plan) -> None:
    page.y += 44
    page.lines.append((_MARGIN, page.y, plan.inner, 1, _LINE))
    page.y += 20
    maker = fitting(sheet.maker, plan.inner, _SMALL)
    wide = text_width(maker, _SMALL)
    if text_width(sheet.settings, _SMALL) + wide + 60 <= plan.inner:
        page.words.append((maker, _MARGIN + plan.inner - wide, page.y + round(_SMALL * 1.02), _SMALL, MUTED, 400))
        page.line(sheet.settings, _MARGIN, _SMALL, MUTED)
        return
    for line in [*_flowed(sheet.settings.split(_DOT), plan.inner), maker]:
        page.line(line, _MARGIN, _SMALL, MUTED)


def _flowed(parts: list[str], width: int) -> list[str]:
    """Small lines that break between parts."""
    lines = parts[:1]
    for part in parts[1:]:
        longer = lines[-1] + _DOT + part
        lines[-1:] = [longer] if text_width(longer, _SMALL) <= width else [lines[-1], part]
    return [fitting(line, width, _SMALL) for line in lines]
