"""The pictures to learn from: found, checked and decoded before training starts, each with its caption.

    read_examples('my/pictures', recipe, 512)     a folder; captions in NAME.txt, metadata.csv or metadata.jsonl
    read_examples(MsDataset.load(...), ...)       rows with the host's columns `Target:FILE` and `Text:Prompt`
    read_examples([('a.png', 'a cat'), ...], ...) paths or pictures, with or without a caption
"""
from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageOps

from modelscope_cartoon.errors import BadPictures
from modelscope_cartoon.log import logger
from modelscope_cartoon.training.captions import captions_of_folder
from modelscope_cartoon.training.recipe import Recipe

SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif', '.tif', '.tiff')
MAX_PIXELS, MAX_BYTES, MIN_SIDE = 40_000_000, 50 * 2**20, 16
MAX_BAD_SHARE = 0.1
_FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'GIF', 'TIFF')
_FEW = 5
FILE_COLUMNS, TEXT_COLUMNS = ('Target:FILE', 'file_name', 'image'), ('Text:Prompt', 'text', 'caption')


class Example(NamedTuple):
    """A picture whose short side is the resolution, RGB; caption as it is trained; sha256 of what was given."""
    name: str
    image: Image.Image
    caption: str
    sha256: str


class Given(NamedTuple):
    name: str
    picture: Any
    caption: str | None


def read_examples(source: Any, recipe: Recipe, resolution: int) -> list[Example]:
    """All good pictures of `source`; a bad one is named and left out, more than a tenth bad is BadPictures."""
    examples, bad, given = [], [], list(_given(source))
    for one in given:
        try:
            image, digest = decode(one.picture, resolution)
            examples.append(Example(one.name, image, recipe.caption_of(one.caption), digest))
        except _Refused as error:
            bad.append(f'{one.name}: {error}')
            logger.warning('left out: %s', bad[-1])
    if len(bad) > MAX_BAD_SHARE * len(given):
        raise BadPictures(f'{len(bad)} of {len(given)} pictures cannot be used, more than a tenth; mend or remove '
                          f'them: {"; ".join(bad[:5])}{"; ..." if len(bad) > 5 else ""}.')
    if len(examples) < _FEW:
        logger.warning('%d pictures are few for a style; 10 to 100 are better.', len(examples))
    return examples


def _given(source: Any) -> Iterator[Given]:
    if isinstance(source, (str, os.PathLike)):
        yield from _of_folder(Path(source))
    elif isinstance(source, Iterable) and not isinstance(source, (bytes, Mapping)):
        count = 0
        for count, row in enumerate(source, 1):
            yield _of_row(row, f'picture {count}')
        if not count:
            raise BadPictures('the data set has no rows; give 10 to 100 pictures.')
    else:
        raise BadPictures(f'pictures is a {type(source).__name__}; accepted: a folder, an MsDataset, or a list.')


def _of_folder(root: Path) -> Iterator[Given]:
    if not root.is_dir():
        raise BadPictures(f'no folder {str(root)!r}; give a folder of 10 to 100 pictures.')
    captions = captions_of_folder(root)
    found = False
    for path in sorted(root.rglob('*')):
        name = path.relative_to(root).as_posix()
        if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
            raise BadPictures(f'{path} is a link that leads out of the folder, which is not followed; '
                              'put a copy of the picture there.')
        hidden = any(part.startswith('.') for part in path.relative_to(root).parts)
        if path.suffix.lower() in SUFFIXES and path.is_file() and not hidden:
            found = True
            yield Given(name, path, captions.pop(name, None))
    if captions:
        raise BadPictures(f'{root} has captions for pictures that are not there: {", ".join(list(captions)[:5])}.')
    if not found:
        raise BadPictures(f'{root} has no pictures in it; accepted: {", ".join(SUFFIXES)}.')


def _of_row(row: Any, name: str) -> Given:
    caption = None
    if isinstance(row, Mapping):
        column = next((c for c in FILE_COLUMNS if c in row), None)
        if column is None:
            raise BadPictures(f'{name} has the columns {", ".join(map(str, row))}; needed: Target:FILE with the '
                              'picture, and Text:Prompt with its caption.')
        picture, caption = row[column], next((row[c] for c in TEXT_COLUMNS if c in row), None)
    elif isinstance(row, (tuple, list)) and len(row) == 2:
        picture, caption = row
    else:
        picture = row
    if isinstance(picture, Mapping):      # as `datasets` keeps an undecoded Image
        picture = picture.get('bytes') or picture.get('path')
    if isinstance(picture, (str, os.PathLike)):
        name = Path(picture).name
    return Given(name, picture, caption if caption is None else str(caption))


class _Refused(Exception):
    """Why one picture can't be used."""


def decode(picture: Any, resolution: int) -> tuple[Image.Image, str]:
    """(RGB with `resolution` as its short side, sha256) of a path, bytes, a PIL picture or an RGB array."""
    try:
        if isinstance(picture, (str, os.PathLike)):
            picture = _read(Path(picture))
        image, data = _open(picture)
        return _resized(_rgb(image), resolution), hashlib.sha256(data).hexdigest()
    except _Refused:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, ArithmeticError, LookupError, TypeError, MemoryError,
            Image.DecompressionBombError) as error:
        raise _Refused(f'cannot be decoded ({" ".join(str(error).split())[:120]})') from error


def _read(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise _Refused(f'has {size / 2**20:.0f} MB; at most {MAX_BYTES // 2**20} are accepted')
    return path.read_bytes()


def _open(picture: Any) -> tuple[Image.Image, bytes]:
    if isinstance(picture, bytes):
        with warnings.catch_warnings():     # of a bomb: refused below, in words
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            image, data = Image.open(io.BytesIO(picture), formats=_FORMATS), picture
    else:
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        data = b''
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _Refused(f'has {width} x {height} pixels; at most {MAX_PIXELS // 10**6} megapixels are accepted')
    if min(width, height) < MIN_SIDE:
        raise _Refused(f'has {width} x {height} pixels; its short side needs {MIN_SIDE}')
    image.load()
    return image, data or image.tobytes()


def _rgb(image: Image.Image) -> Image.Image:
    """Upright, first frame, 8 bits, on white where it is transparent."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith('I') or image.mode == 'F':
        image = _eight_bits(image)
    if image.mode in ('RGBA', 'LA', 'PA', 'RGBa', 'La') or 'transparency' in image.info:
        image = image.convert('RGBA')
        ground = Image.new('RGBA', image.size, 'white')
        return Image.alpha_composite(ground, image).convert('RGB')
    return image.convert('RGB')


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or floats: scaled from the range that its format has, not from its own extremes."""
    import numpy as np

    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all() or values.min() < 0:
        raise _Refused('holds numbers that are no grey values')
    most = next((m for m in (1, 255, 65535, 2**32 - 1) if values.max() <= m), None) if image.mode == 'F' else 65535
    if most is None or values.max() > most:
        raise _Refused(f'holds grey values up to {values.max():g}; at most 65535 are accepted')
    return Image.fromarray(np.round(values * (255 / most)).astype(np.uint8))


def _resized(image: Image.Image, resolution: int) -> Image.Image:
    width, height = image.size
    scale = resolution / min(width, height)
    if max(width, height) / min(width, height) > 8:
        raise _Refused(f'has {width} x {height} pixels; a strip of more than 1 : 8 cannot be learnt from')
    size = max(resolution, round(width * scale)), max(resolution, round(height * scale))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
