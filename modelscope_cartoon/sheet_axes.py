"""What a sheet shows: axes, and the pictures where they cross.

    grid({'style': ['flat', 'watercolor'], 'seed': [1, 2]}, {'text': 'a cat'})     # columns: styles, rows: seeds

Of the axes with more than one value the first in AXES is the columns, the last is the rows, those between are sections.
"""
from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from modelscope_cartoon import __version__
from modelscope_cartoon.errors import InvalidRequest
from modelscope_cartoon.labels import VISIBLE
from modelscope_cartoon.presets import EXACT
from modelscope_cartoon.styles import styles

MAX_PICTURES = 400


class Label(NamedTuple):
    main: str
    sub: str = ''


@dataclass
class Cell:
    """One picture: its request and what tells it from the others; later its file, its recipe, or why there is none."""
    request: dict[str, Any]
    name: str = ''
    picture: Path | None = None
    recipe: dict[str, Any] | None = None
    fault: str | None = None


@dataclass
class Section:
    """A grid of rows x columns cells; title and labels may be empty."""
    title: str
    columns: list[Label]
    rows: list[Label]
    cells: list[list[Cell]]


@dataclass
class Sheet:
    title: str
    sections: list[Section]
    note: str = ''         # a line below the title
    settings: str = ''     # what is the same for all pictures
    maker: str = f'{VISIBLE} · modelscope-cartoon {__version__}'

    @property
    def cells(self) -> list[Cell]:
        return [cell for section in self.sections for row in section.cells for cell in row]


@dataclass(frozen=True)
class Axis:
    """A field of a request whose values can be held side by side."""
    field: str
    words: str
    label: Callable[[Any], Label] | None = None
    plural: str = 's'

    def label_of(self, value: Any) -> Label:
        return self.label(value) if self.label else Label(_number(value), self.words)

    def words_of(self, value: Any) -> str:
        """The label in a line of text: 水彩 watercolor; 种子 seed 1."""
        return ' '.join(filter(None, self.label(value))) if self.label else f'{self.words} {_number(value)}'


def style_label(style: str | None) -> Label:
    """水彩 watercolor; a mix: 扁平 0.6 + 水彩 0.4."""
    if style is None:
        return Label('无风格', 'no style')
    parts = [part.partition(':') for part in style.split('+')]
    return Label(' + '.join(f'{styles()[name].title_zh} {weight}'.strip() for name, _, weight in parts),
                 ' + '.join(name for name, _, _ in parts))


def _number(value: Any) -> str:
    return f'{value:g}' if isinstance(value, float) else str(value)


AXES = (
    Axis('style', '风格 style', style_label),
    Axis('scheduler', '采样 scheduler', lambda value: Label(value or '默认', '' if value else "the model's own")),
    Axis('num_inference_steps', '步数 steps', plural=''),
    Axis('guidance_scale', '引导 guidance', plural=''),
    Axis('text', '提示词 prompt', lambda value: Label(value or '(no words)')),
    Axis('seed', '种子 seed'),
)


def grid(values: Mapping[str, Sequence[Any]], shared: Mapping[str, Any]) -> list[Section]:
    """The sections of a sheet: a cell for each combination of `values` (by field). InvalidRequest where it's too many.

    Equal values of an axis are one.
    """
    given = _given(values)
    _check_count(values)
    one = {axis.field: some[0] for axis, some in given.items()} | dict(shared)
    several = [axis for axis, some in given.items() if len(some) > 1]
    across, down = several[:1], several[1:][-1:]
    return [_section(dict(zip(several[1:-1], combination)), across, down, given, one)
            for combination in itertools.product(*(given[axis] for axis in several[1:-1]))]


def product_words(values: Mapping[str, Sequence[Any]]) -> str:
    """5 风格 styles × 3 种子 seeds"""
    counts = {axis: len(some) for axis, some in _given(values).items() if len(some) > 1}
    return ' × '.join(f'{count} {axis.words}{axis.plural}' for axis, count in counts.items())


def _given(values: Mapping[str, Sequence[Any]]) -> dict[Axis, list[Any]]:
    return {axis: list(dict.fromkeys(values[axis.field])) for axis in AXES}


def _check_count(values: Mapping[str, Sequence[Any]]) -> None:
    pictures = math.prod(map(len, _given(values).values()))
    if pictures > MAX_PICTURES:
        raise InvalidRequest(f'{product_words(values)} are {pictures:,} pictures; a sheet has room for {MAX_PICTURES}; '
                             'make several sheets of it.')


def _section(fixed: Mapping[Axis, Any], across: list[Axis], down: list[Axis], given: Mapping[Axis, list[Any]],
             one: Mapping[str, Any]) -> Section:
    title = _words(fixed)

    def cell(row: tuple[Any, ...], column: tuple[Any, ...]) -> Cell:
        own = {**fixed, **dict(zip(across, column)), **dict(zip(down, row))}
        return Cell({**one, **{axis.field: value for axis, value in own.items()}}, _words(own))
    columns, rows = (list(itertools.product(*(given[axis] for axis in axes))) for axes in (across, down))
    return Section(title, [_label(across, column) for column in columns], [_label(down, row) for row in rows],
                   [[cell(row, column) for column in columns] for row in rows])


def _words(values: Mapping[Axis, Any]) -> str:
    return ' · '.join(axis.words_of(value) for axis, value in values.items())


def _label(axes: list[Axis], value: tuple[Any, ...]) -> Label:
    return axes[0].label_of(value[0]) if axes else Label('')


def settings_line(recipes: Sequence[Mapping[str, Any]]) -> str:
    """What all of the pictures share: mini · 水彩 watercolor · 步数 steps 25 · ... · 128 × 128."""
    words = (_shared_words(recipes, *row) for row in _SETTINGS)
    return ' · '.join(filter(None, words))


def _shared_words(recipes: Sequence[Mapping[str, Any]], value_of: Callable[[Mapping[str, Any]], Any],
                  words: Callable[[Any], str]) -> str:
    values = [value_of(recipe) for recipe in recipes]
    return words(values[0]) if values and values[0] is not None and values.count(values[0]) == len(values) else ''


def _scheduler(recipe: Mapping[str, Any]) -> str:
    return recipe['request'].get('scheduler') or recipe['used']['scheduler']['class'].removesuffix('Scheduler')


_SETTINGS: tuple[tuple[Callable[[Mapping[str, Any]], Any], Callable[[Any], str]], ...] = (
    (lambda recipe: recipe['model']['id'], str),
    (lambda recipe: recipe['request'].get('style'), lambda style: ' '.join(style_label(style))),
    (lambda recipe: recipe['request']['preset'], lambda preset: '' if preset == EXACT else f'预设 preset {preset}'),
    (lambda recipe: recipe['request']['num_inference_steps'], '步数 steps {}'.format),
    (lambda recipe: recipe['request']['guidance_scale'], '引导 guidance {:g}'.format),
    (_scheduler, '采样 {}'.format),
    (lambda recipe: recipe['request']['seed'], '种子 seed {}'.format),
    (lambda recipe: (recipe['request']['width'], recipe['request']['height']), lambda size: f'{size[0]} × {size[1]}'),
)
