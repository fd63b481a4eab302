"""The sheet of unselected pictures, the copies beside their neighbours, and the table for the docs."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.quality.copies import Training
from benchmarks.quality.pictures import Pictures
from benchmarks.quality.prompts import Ask
from mini_training.subjects import LOOKS

SIDE, LINE = 128, 18
SOURCES = ('rendered', 'through the autoencoder', 'drawn')


def tiled(rows: Sequence[tuple[str, Sequence[Any]]], heads: Sequence[str]) -> Image.Image:
    """Rows of pictures, each under its own line of text; `heads` above the columns."""
    font = ImageFont.load_default(12)
    wide = SIDE * max(len(pictures) for _, pictures in rows)
    sheet = Image.new('RGB', (wide, LINE + len(rows) * (SIDE + LINE)), 'white')
    pen = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        pen.text((column * SIDE + 4, 2), head, 'black', font)
    for row, (text, pictures) in enumerate(rows):
        top = LINE + row * (SIDE + LINE)
        pen.text((4, top + 2), text, 'black', font)
        for column, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(np.asarray(picture)), (column * SIDE, top + LINE))
    return sheet


def sheet(asks: Sequence[Ask], drawn: Pictures) -> Image.Image:
    """All pictures of the group 'sheet', in order: a seed a row, a style a column. A portrait's frame ("a drawing of",
    "cartoon portrait of") may differ from style to style; the row's label is the first one's."""
    rows: dict[int, tuple[str, list[Any]]] = {}
    for ask, picture in zip(asks, drawn):
        if ask.group == 'sheet':
            rows.setdefault(ask.seed, (f'{ask.text}, seed {ask.seed}', []))[1].append(picture)
    return tiled(list(rows.values()), tuple(LOOKS))


def neighbours(asks: Sequence[Ask], drawn: Pictures, training: Training) -> Image.Image:
    """One picture of each row of the sheet, a style further each time, with its three nearest training pictures."""
    places = [i for i, ask in enumerate(asks) if ask.group == 'sheet']
    places = [places[row + row // len(LOOKS) % len(LOOKS)] for row in range(0, len(places), len(LOOKS))]
    apart, order = training.nearest(drawn[places], 3)
    rows = [(f'{asks[i].style}, {asks[i].text}: {", ".join(f"{d:.3f}" for d in some)}',
             [drawn[i], *(training.pictures[n] for n in numbers)])
            for i, some, numbers in zip(places, apart, order)]
    return tiled(rows, ('drawn', 'nearest in training', 'second', 'third'))


def cell(value: dict[str, Any] | None) -> str:
    """'87 % (82-91), 160'"""
    if not value or not value['count']:
        return ''
    return f'{100 * value["share"]:.0f} % ({100 * value["low"]:.0f}-{100 * value["high"]:.0f}), {value["count"]}'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ['---'] * len(heads), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n'


def markdown(result: dict[str, Any]) -> str:
    """Shares with 95 % intervals (Wilson) and the number of pictures, and what the aims were."""
    main = table(('figure', 'aim', 'drawn', 'ceiling: renderings', 'ceiling: through the autoencoder'),
                 [(row['figure'], f'{100 * row["aim"]:.0f} %' if row['aim'] else '', cell(row.get('drawn')),
                   cell(row.get('rendered')), cell(row.get('through the autoencoder'))) for row in result['figures']])
    extra = table(('there though nobody asked', *SOURCES),
                  [(name, *(cell(row.get(source)) for source in SOURCES)) for name, row in result['unasked'].items()])
    trigger = table(('without its trigger', 'value'),
                    [(name, cell(value) if isinstance(value, dict) and 'hits' in value else spelled(value))
                     for name, value in result['without trigger'].items()])
    copy = table(('nearest training picture', 'median: ' + SOURCES[0], SOURCES[1], SOURCES[2],
                  'drawn nearer than 95 % of fresh ones'),
                 [(name, *(f'{value["median"][source]:.3f}' for source in SOURCES),
                   f'{100 * value["drawn nearer than 95 % of fresh"]:.0f} %')
                  for name, value in result['copies'].items() if isinstance(value, dict)])
    seed = table(('eight seeds of a prompt, mean distance', 'drawn', 'renderings of the same words', 'least, drawn'),
                 [(name, f'{value["drawn"]["mean"]:.3f}', f'{value["rendered"]["mean"]:.3f}',
                   f'{value["drawn"]["least"]:.3f}')
                  for name, value in result['seeds'].items() if isinstance(value, dict)])
    return '\n'.join((main, extra, trigger, copy, seed))


def spelled(value: Any) -> str:
    return ', '.join(f'{name} {count}' for name, count in value.items()) if isinstance(value, dict) else str(value)


def save(image: Image.Image, path: Path) -> None:
    """With 256 colours: a sheet is to be looked at, and git keeps every version."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.quantize(256).save(path, optimize=True)
