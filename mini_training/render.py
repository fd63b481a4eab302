"""Draws the training pictures: `python -m mini_training.render --work DIR --count 24000`."""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import resvg_py
from numpy.typing import NDArray

from mini_training.looks import COLOURS, DRAW, place
from mini_training.portraits import draw_portrait
from mini_training.subjects import AGES, ICON_OF, ICON_SETS, LOOKS, NOUNS, ROLE_ICON_OF, ROLES, TONE_SUFFIX, Row

SIZE = 128
SHARE = {'noun': 0.46, 'role': 0.14, 'portrait': 0.40}
HELD_OUT = 0.18


def held_out(noun: str, colour: str) -> bool:
    """Pairs that are never drawn, kept to see whether nouns and grounds combine."""
    return hashlib.sha256(f'{noun}|{colour}'.encode()).digest()[0] < 256 * HELD_OUT


@cache
def icon_set(npm: str, name: str) -> dict[str, Any]:
    folder = Path(npm) / 'node_modules' / '@iconify-json' / name
    data: dict[str, Any] = json.loads((folder / 'icons.json').read_text())
    chars = json.loads((folder / 'chars.json').read_text())
    data['by_code'] = {code.replace('-fe0f', ''): icon for code, icon in chars.items()}
    return data


@cache
def noto_name(npm: str, fluent_name: str) -> str:
    """The two sets name things differently; the code point is what they share."""
    codes = {icon: code for code, icon in icon_set(npm, 'fluent-emoji-flat')['by_code'].items()}
    return str(icon_set(npm, 'noto')['by_code'][codes[fluent_name]])


@cache
def draw_icon(npm: str, set_name: str, icon: str) -> NDArray[np.uint8]:
    data = icon_set(npm, set_name)
    icon = noto_name(npm, icon) if set_name == 'noto' else icon
    entry = data['icons'].get(icon) or data['icons'][data['aliases'][icon]['parent']]
    width, height = entry.get('width', data['width']), entry.get('height', data['height'])
    return rasterise(f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                     f'viewBox="0 0 {width} {height}">{entry["body"]}</svg>')


def rasterise(svg: str) -> NDArray[np.uint8]:
    """SVG to RGBA, SIZE pixels square."""
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))
    bgra = np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED), np.uint8)
    return np.ascontiguousarray(bgra[..., [2, 1, 0, 3]])


def sample_row(index: int) -> tuple[Row, dict[str, Any] | None]:
    """What picture `index` shows, and its DiceBear job if it is a portrait."""
    rng = random.Random(index)
    kind = rng.choices(tuple(SHARE), tuple(SHARE.values()))[0]
    look = rng.choice(tuple(LOOKS))
    job = None
    if kind == 'portrait':
        row, job = draw_portrait(look, rng)
    elif kind == 'role':
        row = sample_role(look, rng)
    else:
        word = rng.choice(NOUNS)
        icon = ICON_OF.get(word, word.replace(' ', '-'))
        row = {'kind': 'noun', 'look': look, 'word': word, 'icon': icon, 'bust': False}
    row['colour'] = rng.choice([c for c in COLOURS if kind != 'noun' or not held_out(row['word'], c)])
    row['set'] = rng.choices(ICON_SETS[look], (3, 1))[0]
    return row, job


def sample_role(look: str, rng: random.Random) -> Row:
    """Someone at work, or (three in eight) someone of an age."""
    row: Row = {'kind': 'role', 'look': look, 'skin': rng.choice(tuple(TONE_SUFFIX)), 'bust': True}
    if rng.random() < 0.375:
        word, icon = rng.choice(tuple(AGES)), ''
        row |= {'word': word, 'who': ''}
    else:
        word, who = rng.choice(ROLES), rng.choice(('woman', 'man'))
        row |= {'word': word, 'who': who}
        icon = f'{who}-'
    icon += ROLE_ICON_OF.get(word, word.replace(' ', '-'))
    return row | {'icon': icon + TONE_SUFFIX[row['skin']]}


def portrait_svgs(npm: Path, jobs: list[dict[str, Any]]) -> Iterator[str]:
    lines = '\n'.join(json.dumps(job) for job in jobs)
    done = subprocess.run(['node', 'portraits.mjs'], cwd=npm, input=lines, capture_output=True, text=True, check=True)
    return map(json.loads, done.stdout.splitlines())


def draw_picture(npm: Path, row: Row, svg: str | None, index: int) -> NDArray[np.uint8]:
    """The row's icon, or its portrait `svg`, placed by chance and drawn in the row's look: 128 x 128 x 3 bytes."""
    rng = np.random.default_rng(index)
    drawing = rasterise(svg) if svg else draw_icon(str(npm), row['set'], row['icon'])
    image, alpha = place(drawing, row['look'], row['bust'], rng)
    picture = DRAW[row['look']](image, alpha, row['colour'], rng)
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def draw_chunk(npm: Path, target: Path, count: int, start: int, stop: int) -> list[Row]:
    """Draws the pictures start..stop-1 into their place in the shared array."""
    pictures = np.memmap(target, np.uint8, 'r+', shape=(count, SIZE, SIZE, 3))
    sampled = [sample_row(index) for index in range(start, stop)]
    svgs = portrait_svgs(npm, [job for _, job in sampled if job])
    for index, (row, job) in enumerate(sampled, start):
        pictures[index] = draw_picture(npm, row, next(svgs) if job else None, index)
    pictures.flush()
    return [row for row, _ in sampled]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work', type=Path, required=True)
    parser.add_argument('--npm', type=Path, required=True, help='folder with node_modules and portraits.mjs')
    parser.add_argument('--count', type=int, default=24000)
    parser.add_argument('--processes', type=int, default=2)
    args = parser.parse_args()
    target = args.work / 'pictures.u8'
    with target.open('wb') as file:
        file.truncate(args.count * SIZE * SIZE * 3)
    starts = range(0, args.count, 500)
    with ProcessPoolExecutor(args.processes) as pool:
        jobs = [pool.submit(draw_chunk, args.npm, target, args.count, s, min(s + 500, args.count)) for s in starts]
        rows = [row for job in jobs for row in job.result()]
    (args.work / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))


if __name__ == '__main__':
    main()
