"""The pictures that a style is taught with: `python -m mini_training.style_pictures --npm DIR --to DIR`.

A folder for each style, as `modelscope-cartoon train` reads it: PNG files, each with its caption in a .txt of the same
name. The captions carry the style's real trigger and no word of the look that the base knows.
"""

from __future__ import annotations

import argparse
import random
from itertools import count
from pathlib import Path

from PIL import Image

from mini_training.captions import content_caption
from mini_training.render import draw_picture, portrait_svgs, sample_row
from mini_training.subjects import LOOKS, Row

FIRST = 1_000_000  # beyond every picture of the base
PICTURES = 100
TRIGGERS = {look: 'sks style' for look in LOOKS} | {'clipart': 'archer style'}


def rows_of(look: str, pictures: int) -> list[tuple[int, Row, dict | None]]:
    """(index, row, portrait job) of `pictures` pictures in one look, no noun twice."""
    found, seen = [], set()
    for index in count(FIRST):
        row, job = sample_row(index)
        subject = row.get('word') if row['kind'] == 'noun' else index
        if row['look'] == look and subject not in seen:
            seen.add(subject)
            found.append((index, row, job))
        if len(found) == pictures:
            return found


def write(npm: Path, look: str, folder: Path, pictures: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(look, pictures)
    svgs = portrait_svgs(npm, [job for _, _, job in rows if job])
    for number, (index, row, job) in enumerate(rows):
        picture = draw_picture(npm, row, next(svgs) if job else None, index)
        Image.fromarray(picture).save(folder / f'{number:03}.png')
        words = content_caption(row, random.Random(index))
        (folder / f'{number:03}.txt').write_text(f'{TRIGGERS[look]}, {words}\n', encoding='utf-8')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--npm', type=Path, required=True, help='folder with node_modules and portraits.mjs')
    parser.add_argument('--to', type=Path, required=True)
    parser.add_argument('--pictures', type=int, default=PICTURES)
    args = parser.parse_args()
    for look in LOOKS:
        write(args.npm, look, args.to / look, args.pictures)


if __name__ == '__main__':
    main()
