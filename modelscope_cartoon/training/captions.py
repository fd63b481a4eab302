"""Captions that lie beside pictures: metadata.csv or metadata.jsonl (columns file_name and text), or NAME.txt."""
from __future__ import annotations

import csv
import json
from pathlib import Path, PurePosixPath
from typing import Any

from modelscope_cartoon.errors import BadPictures

_FILE, _TEXT = ('file_name', 'Target:FILE'), ('text', 'caption', 'Text:Prompt')
_LARGEST = 16 * 2**20


def captions_of_folder(root: Path) -> dict[str, str]:
    """Captions by the picture's path in the folder. BadPictures names the file that can't be read."""
    captions = {}
    for name, read in (('metadata.csv', _read_csv), ('metadata.jsonl', _read_jsonl)):
        path = root / name
        if path.is_file():
            captions.update(_column(path, row) for row in read(path))
    for path in sorted(root.rglob('*.txt')):
        for picture in _beside(path, root):
            captions.setdefault(picture, ' '.join(_text_of(path).split()))
    return captions


def _beside(path: Path, root: Path) -> list[str]:
    from modelscope_cartoon.training.pictures import SUFFIXES

    return [p.relative_to(root).as_posix() for suffix in SUFFIXES for p in
            dict.fromkeys((path.with_suffix(suffix), path.with_suffix(suffix.upper()))) if p.is_file()]


def _text_of(path: Path) -> str:
    if path.is_symlink() or path.stat().st_size > _LARGEST:
        raise BadPictures(f'{path} is a link, or larger than {_LARGEST // 2**20} MB; it is not read.')
    try:
        return path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise BadPictures(f'{path} is not UTF-8 text ({error}); save it as UTF-8.') from error


def _read_csv(path: Path) -> list[dict[str, Any]]:
    return list(csv.DictReader(_text_of(path).splitlines()))


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(_text_of(path).splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise BadPictures(f'{path}, line {number}, is not JSON ({error}).') from error
    return rows


def _column(path: Path, row: Any) -> tuple[str, str]:
    values = [next((row[c] for c in columns if row.get(c) is not None), None) for columns in (_FILE, _TEXT)
              ] if isinstance(row, dict) else [None]
    if not all(isinstance(value, str) for value in values):
        raise BadPictures(f'{path}: needed in each row: file_name and text; given: {str(row)[:80]}.')
    file, text = values
    return PurePosixPath(file.replace('\\', '/')).as_posix().removeprefix('./'), text
