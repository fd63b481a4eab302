"""Lettering on pictures, in any script: written, measured, cut and wrapped.

OpenCV 5 brings the fonts: a variable sans (Latin, Greek, Cyrillic, ...; weights 100..1000), and one for Chinese,
Japanese and Korean that it takes by itself, in one weight. With OpenCV 4, or where OpenCV can't be imported, the words
are written by Pillow, in a font that is found on the machine, and a warning says which.
"""
from __future__ import annotations

import math
import re
import threading
import unicodedata
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from modelscope_cartoon.log import logger

Colour = tuple[int, int, int]     # RGB
REGULAR = 400
_ELLIPSIS = '…'
# the first that is there; by file name, because so does Pillow look through the system's folders
_SYSTEM_FONTS = ('NotoSansCJK-Regular.ttc', 'NotoSansSC-Regular.otf', 'NotoSansSC-Regular.ttf', 'PingFang.ttc',
                 'Hiragino Sans GB.ttc', 'STHeiti Light.ttc', 'msyh.ttc', 'simhei.ttf', 'wqy-microhei.ttc',
                 'wqy-zenhei.ttc', 'DroidSansFallbackFull.ttf', 'Arial Unicode.ttf', 'DejaVuSans.ttf', 'arial.ttf')
_WITHOUT_CHINESE = ('DejaVuSans.ttf', 'arial.ttf', None)
_WIDE = '\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff'     # a line may end after each
_OPENING, _CLOSING = '（「『【《〈“‘', '，。！？、；：）」』】》〉”’…'
_STOPS = ' ,.;:，。、；：'
_PIECES = re.compile(rf'\s+|[{_OPENING}]*[^\s{_OPENING}{_CLOSING}](?<=[{_WIDE}])[{_CLOSING}]*|[^\s{_WIDE}]+|.')


def text_width(text: str, size: int, weight: int = REGULAR) -> int:
    """Pixels of one line of `text`, `size` pixels high."""
    return _pen().width(_line(text), size, weight)


def write(image: np.ndarray, text: str, where: tuple[int, int], size: int, colour: Colour, weight: int = REGULAR,
          ) -> None:
    """One line of `text` on a uint8 RGB `image`, in place; `where` it begins: x, and y of the baseline.

    About 0.95 `size` of it is above the baseline, 0.25 below. What would lie outside of the image is left out.
    """
    canvas = np.ascontiguousarray(image)
    _pen().write(canvas, _line(text), where, size, colour, weight)
    if canvas is not image:
        image[...] = canvas


def fitting(text: str, width: int, size: int, weight: int = REGULAR) -> str:
    """`text`, cut with an ellipsis where it is wider than `width` pixels; empty where not even that has room."""
    text = _line(text)
    if text_width(text, size, weight) <= width:
        return text
    count = _most(text, width, size, weight, _ELLIPSIS)
    whole = max((end for end in _ends(text, count) if end <= count), default=0)     # rather after a word than in one
    kept = text[:whole if whole > 0.7 * count else count].rstrip().rstrip(_STOPS)
    return kept + _ELLIPSIS if count else ''


def wrapped(text: str, width: int, size: int, weight: int = REGULAR, lines: int = 3) -> list[str]:
    """`text` in at most `lines` lines, broken between words, or at any Chinese character; the last is cut to fit."""
    rows: list[str] = []
    rest = ' '.join(_line(text).split())
    while rest and len(rows) < lines - 1:
        row = rest[:_break(rest, width, size, weight)]
        if not row:
            break
        rows.append(row.rstrip())
        rest = rest[len(row):].lstrip()
    last = fitting(rest, width, size, weight)
    return [*rows, last] if last else rows


def _break(text: str, width: int, size: int, weight: int) -> int:
    """How many characters of `text` go into a line: whole pieces, or as many as there is room for in a long one."""
    most = _most(text, width, size, weight)
    if most == len(text):
        return most
    return max((end for end in _ends(text, most) if len(text[:end].rstrip()) <= most), default=most)


def _ends(text: str, count: int) -> list[int]:
    """Where the pieces end that begin in the first `count` characters."""
    return [match.end() for match in _PIECES.finditer(text, 0, count + 200) if match.start() <= count]


def _most(text: str, width: int, size: int, weight: int, end: str = '') -> int:
    """The most characters of `text` that are, with `end` behind them, at most `width` pixels wide."""
    low, high = 0, min(len(text), max(1, width))     # no letter is narrower than a pixel
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle].rstrip() + end, size, weight) <= width:
            low = middle
        else:
            high = middle - 1
    while 0 < low < len(text) and unicodedata.combining(text[low]):     # an accent stays with its letter
        low -= 1
    return low


def _line(text: str) -> str:
    """One line that any font engine can take: OpenCV's ends the process at a lone surrogate, the line at a NUL."""
    return ''.join(_REPLACED.get(unicodedata.category(one), one) for one in text)


_REPLACED = {'Cc': ' ', 'Zl': ' ', 'Zp': ' ', 'Cs': '\ufffd', 'Cf': ''}


class _OpenCV(NamedTuple):
    face: Any
    lock: Any

    def width(self, text: str, size: int, weight: int) -> int:
        import cv2
        with self.lock:
            return cv2.getTextSize((0, 0), text, (0, 0), self.face, size, weight)[2]

    def write(self, image: np.ndarray, text: str, where: tuple[int, int], size: int, colour: Colour, weight: int,
              ) -> None:
        import cv2
        with self.lock:
            cv2.putText(image, text, where, colour, self.face, size, weight)


class _Pillow(NamedTuple):
    name: str | None     # of the font; None: the Latin one that Pillow brings

    def _font(self, size: int) -> Any:
        from PIL import ImageFont
        return ImageFont.truetype(self.name, size) if self.name else ImageFont.load_default(size)

    def width(self, text: str, size: int, weight: int) -> int:
        return math.ceil(self._font(size).getlength(text))

    def write(self, image: np.ndarray, text: str, where: tuple[int, int], size: int, colour: Colour, weight: int,
              ) -> None:
        from PIL import Image, ImageDraw

        x, y = where
        top = max(0, y - 2 * size)
        band = image[top:max(top, y + size)]
        if not band.size:
            return
        page = Image.fromarray(band)
        ImageDraw.Draw(page).text((x, y - top), text, colour, self._font(size), anchor='ls')
        band[...] = np.asarray(page)


@cache
def _pen() -> _OpenCV | _Pillow:
    try:
        import cv2
        if hasattr(cv2, 'FontFace'):
            return _OpenCV(cv2.FontFace('sans'), threading.Lock())
        why = f'OpenCV {cv2.__version__} has no fonts of its own'
    except ImportError as error:     # as on a server without libGL
        why = f"OpenCV can't be imported ({error})"
    pen = _Pillow(next(filter(_is_there, _SYSTEM_FONTS), None))
    logger.warning("%s; words on pictures are written in %s%s. pip install 'opencv-python-headless>=5' writes all "
                   'scripts.', why, pen.name or "Pillow's font",
                   ', which has no Chinese' if pen.name in _WITHOUT_CHINESE else '')
    return pen


def _is_there(font: str) -> bool:
    from PIL import ImageFont
    try:
        ImageFont.truetype(font, 12)
    except OSError:
        return False
    return True
