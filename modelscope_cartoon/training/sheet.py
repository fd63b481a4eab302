"""Pictures about the training: samples as rows of one sheet over time, and the loss as a curve."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from modelscope_cartoon import metadata
from modelscope_cartoon.files import write_file
from modelscope_cartoon.request import Picture, parse_request
from modelscope_cartoon.sampling import sample
from modelscope_cartoon.training.base import Base
from modelscope_cartoon.training.prior import drawing

DRAWN = ('iptc',)      # AIGC's label has a number that would be another each time
_SEED, _AT_ONCE, _CELL, _LABEL = 7, 4, 256, 16
_INK, _PALE, _SECOND = '#1f2933', '#d5dce3', '#d9822b'


class Samples:
    """Draws `prompts` with fixed seeds at a step, and keeps folder/sheet.png: a row a step, the first on top."""

    def __init__(self, base: Base, prompts: Sequence[str], folder: Path):
        self.base, self.prompts, self.folder = base, list(prompts), folder

    def draw(self, step: int) -> None:
        images = []
        for start in range(0, len(self.prompts), _AT_ONCE):
            some = self.prompts[start:start + _AT_ONCE]
            seeds = [_SEED + start + i for i in range(len(some))]
            request = parse_request(some, seed=seeds, **drawing(self.base))
            images.extend(sample(self.base.pipe, request, [Picture(p, '', s) for p, s in zip(some, seeds)]))
        cells = [Image.fromarray((image * 255).round().astype(np.uint8)) for image in images]
        write_file(self.folder / f'step-{step:06}.png', png(row(cells), DRAWN))
        self.write_sheet()

    def write_sheet(self) -> None:
        paths = sorted(self.folder.glob('step-*.png'))
        rows = [(path.stem.replace('-', ' ').replace(' 0', ' ').lstrip(), Image.open(path)) for path in paths]
        write_file(self.folder / 'sheet.png', png(sheet(rows, self.prompts), DRAWN))


def default_prompts(captions: Sequence[str], without_trigger: Sequence[str]) -> list[str]:
    """Three captions from all over the list, then two of them without the trigger: those shall not change."""
    spread = [round(i * (len(captions) - 1) / 2) for i in range(3)]
    with_trigger = list(dict.fromkeys(captions[i] for i in spread))
    plain = list(dict.fromkeys(without_trigger[i] for i in spread[:2]))
    return with_trigger + [prompt for prompt in plain if prompt not in with_trigger]


def row(cells: Sequence[Image.Image], side: int = _CELL) -> Image.Image:
    """`cells` side by side, made smaller to at most `side` pixels each way."""
    cells = [cell.resize((min(cell.width, side), min(cell.height, side))) for cell in cells]
    width, height = cells[0].size
    strip = Image.new('RGB', (width * len(cells), height), 'white')
    for i, cell in enumerate(cells):
        strip.paste(cell, (i * width, 0))
    return strip


def sheet(rows: Sequence[tuple[str, Image.Image]], prompts: Sequence[str]) -> Image.Image:
    width, height = rows[0][1].size
    page = Image.new('RGB', (width, _LABEL + sum(_LABEL + strip.height for _, strip in rows)), 'white')
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(10)
    cell = width // max(1, len(prompts))
    for i, prompt in enumerate(prompts):
        draw.text((i * cell + 2, 2), _fitting(prompt, cell - 4, font), _INK, font)
    top = _LABEL
    for name, strip in rows:
        draw.text((2, top + 2), _fitting(name, width - 4, font), _INK, font)
        page.paste(strip, (0, top + _LABEL))
        top += _LABEL + strip.height
    return page


def _fitting(text: str, width: int, font: ImageFont.ImageFont) -> str:
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip('.') + '.' if len(text) > 2 else ''
    return text


def loss_curve(history: torch.Tensor, size: tuple[int, int] = (720, 360)) -> Image.Image:
    """Loss of the pictures (dark) and of the class pictures (orange) over the steps, each smoothed over a twentieth."""
    page = Image.new('RGB', size, 'white')
    draw, font, left, top = ImageDraw.Draw(page), ImageFont.load_default(11), 56, 24
    right, bottom = size[0] - 16, size[1] - 28
    curves = [(_smooth(history[:, i].numpy()), colour) for i, colour in ((0, _INK), (1, _SECOND))]
    curves = [(values, colour) for values, colour in curves if np.isfinite(values).any()]
    most = max((float(np.nanmax(values)) for values, _ in curves), default=1.0) * 1.05 or 1.0
    for i in range(5):
        y = bottom - (bottom - top) * i / 4
        draw.line((left, y, right, y), _PALE)
        draw.text((4, y - 7), f'{most * i / 4:.3g}', _INK, font)
    for values, colour in curves:
        xs = np.linspace(left, right, len(values))
        draw.line([(float(x), bottom - (bottom - top) * float(v) / most) for x, v in zip(xs, values)], colour, 2)
    draw.text((left, 4), 'loss: pictures (dark), class pictures (orange)', _INK, font)
    draw.text((left, bottom + 6), '1', _INK, font)
    draw.text((right - 40, bottom + 6), f'{len(history)}', _INK, font)
    return page


def _smooth(values: np.ndarray) -> np.ndarray:
    width = max(1, len(values) // 20)
    if not len(values):
        return values
    sums = np.cumsum(np.insert(values.astype(np.float64), 0, 0))
    means = (sums[width:] - sums[:-width]) / width
    return np.concatenate([np.full(width - 1, means[0]), means])


def png(image: Image.Image, kinds: tuple[str, ...] = ()) -> bytes:
    """kinds: the labels of a picture that a model drew; a curve has none."""
    return metadata.write(image, 'PNG', kinds=kinds)
