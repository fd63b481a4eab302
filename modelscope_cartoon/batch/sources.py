"""The rows of a JSONL, CSV or Parquet file, one at a time: none of them is ever held as a whole."""
from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelscope_cartoon.errors import InvalidRequest, UnknownOption
from modelscope_cartoon.names import look_up
from modelscope_cartoon.request import FIELD_NAMES, RENAMED

LONGEST_LINE = 2**20
_AT_ONCE = 500                     # rows of a Parquet file in memory
_WORDS = ('text', 'negative_prompt', 'style', 'preset', 'scheduler', 'label')      # a CSV value of these stays as it is


@dataclass(frozen=True)
class Unreadable:
    """A line that is no row: how it begins, and what is wrong with it."""
    line: str
    reason: str


Row = dict[str, Any] | Unreadable


def rows(path: Path) -> Iterator[Row]:
    """Every row of the file, by its ending. InvalidRequest where it can't be read at all, or has none."""
    read = look_up('file ending', path.suffix, _READERS)
    count = 0
    try:
        for count, row in enumerate(read(path), 1):     # noqa: B007
            yield row
    except FileNotFoundError:
        raise InvalidRequest(f'{path}: there is no such file.') from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidRequest(f'{path} can\'t be read after row {count} ({error}).' if count else
                             f'{path} can\'t be read ({error}).') from error
    if not count:
        raise InvalidRequest(f'{path} has no row in it; a row is a request, such as {{"text": "a cat", "seed": 7}}.')


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open('rb') as file:
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            whole = len(line) < LONGEST_LINE or line.endswith(b'\n')
            while not whole and not (rest := file.readline(LONGEST_LINE)).endswith(b'\n') and rest:
                pass
            if not whole:
                yield Unreadable(_begin(line), f'line {number} is longer than {LONGEST_LINE:,} bytes.')
            elif line.strip():
                yield _parsed(line.removeprefix(b'\xef\xbb\xbf') if number == 1 else line, number)


def _parsed(line: bytes, number: int) -> Row:
    try:
        row = json.loads(line.decode(), parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        return Unreadable(_begin(line), f'line {number} is no JSON ({getattr(error, "msg", error)}).')
    if isinstance(row, str):
        return {'text': row}
    if not isinstance(row, dict):
        return Unreadable(_begin(line), f'line {number} holds a {type(row).__name__}; accepted: an object with the '
                                        'fields of a request, or a prompt in quotes.')
    return row


def _no_number(constant: str) -> Any:
    raise ValueError(f'{constant} is no number that JSON knows')


def _finite(digits: str) -> float:
    return number if math.isfinite(number := float(digits)) else _no_number(digits)


def _begin(line: bytes) -> str:
    return line[:200].decode(errors='replace').strip()


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding='utf-8-sig', newline='') as file:
        lines = csv.reader(file, strict=True)
        columns = next(lines, [])
        _check(path, columns)
        for cells in lines:
            if len(cells) > len(columns):
                yield Unreadable(','.join(cells)[:200], f'line {lines.line_num} has {len(cells)} values for '
                                                        f'{len(columns)} columns.')
            elif cells:
                yield {column: _read(column, cell) for column, cell in zip(columns, cells) if cell or column == 'text'}


def _read(column: str, cell: str) -> Any:
    """What a cell of a request's field says: numbers, true, false and lists; the field's own check judges the rest."""
    if column not in FIELD_NAMES or column in _WORDS or (column == 'lora' and not cell.lstrip().startswith('[')):
        return cell
    try:
        return _plain(column, json.loads(cell.lower() if cell.lower() in ('true', 'false') else cell))
    except (ValueError, RecursionError):
        return cell


def _parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InvalidRequest(f'{path} needs pyarrow: pip install pyarrow; or write the rows as .jsonl.') from error
    try:
        with ParquetFile(path) as file:
            _check(path, file.schema_arrow.names)
            for batch in file.iter_batches(_AT_ONCE):
                for row in batch.to_pylist():
                    yield {column: _plain(column, value) for column, value in row.items()}
    except ArrowException as error:
        raise InvalidRequest(f'{path} can\'t be read ({error}).') from error


def _plain(column: str, value: Any) -> Any:
    """As JSON has it. Tables keep gaps as NaN, and the whole numbers of a column with gaps as floats."""
    if isinstance(value, list):
        return [_plain(column, one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(column, one) for key, one in value.items()}
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return int(value) if value.is_integer() and column in FIELD_NAMES else value


def _check(path: Path, columns: Iterable[str]) -> None:
    """What would fail every row is said once, before anything is queued."""
    columns = list(columns)
    for wrong in columns:
        if wrong in RENAMED:
            raise UnknownOption(f'{path} has the unknown column {wrong!r} (did you mean {RENAMED[wrong]!r}?).')
    if columns and 'text' not in columns:
        raise InvalidRequest(f'{path} has no column \'text\'; its columns: {", ".join(map(repr, columns[:20]))}.')
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise InvalidRequest(f'{path} has two columns {twice!r}.')


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    '.jsonl': _jsonl, '.ndjson': _jsonl, '.csv': _csv, '.parquet': _parquet}
