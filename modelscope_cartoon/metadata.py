"""A picture's metadata: written into PNG, JPEG and WebP, and read from them, by Pillow.

    kind        what                                      PNG                      JPEG              WebP
    parameters  A1111's text, which other tools read      text `parameters`        EXIF UserComment  EXIF UserComment
    recipe      our own, lossless (picture_recipe)        text modelscope_cartoon  APP15 segments    XMP cartoon:recipe
    aigc        the AIGC label of GB 45438-2025           text AIGC, and XMP       XMP               XMP
    iptc        IPTC's digital source type                XMP                      XMP               XMP
"""
from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelscope_cartoon import a1111, labels
from modelscope_cartoon.checks import shown
from modelscope_cartoon.errors import InvalidRequest
from modelscope_cartoon.log import logger
from modelscope_cartoon.names import look_up

KINDS = ('parameters', 'recipe', 'aigc', 'iptc')
RECIPE_KEY, PARAMETERS_KEY, AIGC_KEY, XMP_KEY = 'modelscope_cartoon', 'parameters', 'AIGC', 'XML:com.adobe.xmp'
OPTIONS: dict[str, dict[str, Any]] = {'PNG': {}, 'JPEG': {'quality': 95, 'subsampling': 0},
                                      'WEBP': {'quality': 95, 'method': 4}}
_EXIF_IFD, _USER_COMMENT, _UNICODE = 0x8769, 0x9286, b'UNICODE\0'
_APP15, _OWN = 0xEF, b'modelscope_cartoon\0'
_LARGEST_EXIF, _LARGEST_PIECE = 65_000, 65_000        # a JPEG segment holds 65,533 bytes
_LARGEST_FILE = 256 * 2**20


@dataclass(frozen=True)
class Metadata:
    """What a file holds, as it stands there; None where it isn't there. size: (width, height)."""
    container: str
    size: tuple[int, int]
    parameters: str | None = None
    recipe: str | None = None
    aigc: str | None = None
    source_type: str | None = None
    xmp: str | None = None


def check_kinds(key: str, value: Any) -> tuple[str, ...]:
    """True (all of them), False (none), one kind or several -> the kinds, in their own order."""
    if isinstance(value, bool):
        return KINDS if value else ()
    many = [value] if isinstance(value, str) else value
    if not isinstance(many, (list, tuple)):
        raise InvalidRequest(f'{key} is {shown(value)}; accepted: True, False, or some of {", ".join(KINDS)}.')
    wanted = {look_up(key, one, {kind: kind for kind in KINDS}) for one in many}
    return tuple(kind for kind in KINDS if kind in wanted)


def write(image: Any, container: str, recipe: Mapping[str, Any] | None = None, kinds: tuple[str, ...] = KINDS) -> bytes:
    """The bytes of a 'PNG', 'JPEG' or 'WEBP' of a Pillow image. Without a recipe it can carry the two labels alone."""
    texts = _texts(recipe, kinds)
    buffer = io.BytesIO()
    image.save(buffer, container, **OPTIONS[container], **_PLACES[container](texts))
    return buffer.getvalue()


def _texts(recipe: Mapping[str, Any] | None, kinds: tuple[str, ...]) -> dict[str, str]:
    texts = {'aigc': labels.aigc(recipe), 'iptc': labels.BY_A_TRAINED_MODEL}
    if recipe:     # in ASCII: control characters and lone surrogates of a prompt are escapes, and come back exactly
        parameters = a1111.write(recipe).encode(errors='replace').decode()     # a file's name may have a surrogate too
        texts |= {'parameters': parameters, 'recipe': json.dumps(recipe, separators=(',', ':'))}
    return {kind: text for kind, text in texts.items() if kind in kinds}


def _packet(texts: Mapping[str, str], **more: str) -> bytes:
    names = {'aigc': labels.AIGC, 'iptc': labels.SOURCE_TYPE, **more}
    properties = {name: texts[kind] for kind, name in names.items() if kind in texts}
    return labels.xmp(properties).encode() if properties else b''


def _in_png(texts: Mapping[str, str]) -> dict[str, Any]:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for kind, key in (('parameters', PARAMETERS_KEY), ('recipe', RECIPE_KEY), ('aigc', AIGC_KEY)):
        if kind in texts:
            info.add_text(key, texts[kind])
    if packet := _packet(texts):
        info.add_itxt(XMP_KEY, packet.decode())
    return {'pnginfo': info}


def _in_jpeg(texts: Mapping[str, str]) -> dict[str, Any]:
    exif = _exif(texts)
    if len(exif) > _LARGEST_EXIF:
        logger.warning("the prompts are too long for a JPEG's `parameters` text, which is left out; our own recipe is "
                       'whole. A PNG or WebP holds both.')
        exif = b''
    recipe = texts.get('recipe', '').encode()
    pieces = [recipe[start:start + _LARGEST_PIECE] for start in range(0, len(recipe), _LARGEST_PIECE)]
    own = b''.join(_segment(_OWN + bytes([i + 1, len(pieces)]) + piece) for i, piece in enumerate(pieces))
    return {'exif': exif, 'xmp': _packet(texts), 'extra': own}


def _segment(data: bytes) -> bytes:
    return struct.pack('>BBH', 0xFF, _APP15, 2 + len(data)) + data


def _in_webp(texts: Mapping[str, str]) -> dict[str, Any]:
    return {'exif': _exif(texts), 'xmp': _packet(texts, recipe=labels.RECIPE)}


def _exif(texts: Mapping[str, str]) -> bytes:
    """A TIFF of two directories, the second with the comment alone; Pillow would give it the type of bytes, not the
    standard's `undefined`."""
    if 'parameters' not in texts:
        return b''
    comment = _UNICODE + texts['parameters'].encode('utf-16-be')
    first, second, data = 8, 26, 44
    return b'Exif\0\0' + struct.pack('>2sHI HHHIII HHHIII', b'MM', 42, first, 1, _EXIF_IFD, 4, 1, second, 0,
                                     1, _USER_COMMENT, 7, len(comment), data, 0) + comment


_PLACES = {'PNG': _in_png, 'JPEG': _in_jpeg, 'WEBP': _in_webp}


def read(path: str | Path) -> Metadata:
    """What the file at `path` holds; its pixels are not decoded. InvalidRequest where it is no picture of a kind we
    write, or can't be read."""
    from PIL import Image

    try:
        if Path(path).stat().st_size > _LARGEST_FILE:
            raise ValueError(f'more than {_LARGEST_FILE:,} bytes')
        with Image.open(path, formats=list(OPTIONS)) as image:
            return _read(image)
    except InvalidRequest:
        raise
    except Exception as error:      # Pillow raises of all kinds on damaged files: OSError, SyntaxError, struct.error
        raise InvalidRequest(f'{path} can\'t be read as a PNG, JPEG or WebP picture '
                             f'({" ".join(str(error).split())[:200]}).') from error


def _read(image: Any) -> Metadata:
    info = image.info
    packet = info.get(XMP_KEY) or info.get('xmp') or b''
    packet = packet.decode(errors='replace') if isinstance(packet, bytes) else str(packet)
    own = _properties(packet) if packet else {}
    return Metadata(
        container=image.format, size=image.size, xmp=packet or None,
        parameters=_text(info, PARAMETERS_KEY) or _user_comment(image),
        recipe=_text(info, RECIPE_KEY) or own.get(labels.RECIPE) or _own_segments(image),
        aigc=_text(info, AIGC_KEY) or own.get(labels.AIGC), source_type=own.get(labels.SOURCE_TYPE))


def _properties(packet: str) -> dict[str, str]:
    try:
        return labels.read_xmp(packet)
    except InvalidRequest as error:     # another tool's, perhaps; the rest of the file can be whole
        logger.warning('%s What it holds is left out.', error)
        return {}


def _text(info: Mapping[str, Any], key: str) -> str | None:
    return str(info[key]) if isinstance(info.get(key), str) else None


def _user_comment(image: Any) -> str | None:
    comment = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    if not isinstance(comment, bytes):
        return comment or None
    head, text = comment[:8], comment[8:]
    if head == _UNICODE:     # which end is first is said nowhere; tools differ
        big, little = text.decode('utf-16-be', 'replace'), text.decode('utf-16-le', 'replace')
        return little if 'Steps: ' in little else big
    return text.decode('ascii', 'replace') if head == b'ASCII\0\0\0' else None


def _own_segments(image: Any) -> str | None:
    """Each is: the key, its number from 1, how many there are, its piece of the text."""
    segments = [data[len(_OWN):] for name, data in getattr(image, 'applist', [])
                if name == 'APP15' and data.startswith(_OWN)]
    pieces = sorted((data[0], data[2:]) for data in segments if len(data) > 2)
    return b''.join(piece for _, piece in pieces).decode(errors='replace') or None
