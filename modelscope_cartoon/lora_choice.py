"""Which LoRAs a picture is drawn with, and how strongly. There are three ways to ask, and one list in the end:

    lora='anime.safetensors', lora=('anime', 0.8), lora=[('a', 0.8), ('b', 0.4)]     in the request
    'a cat <lora:anime:0.8>'                                                         in the prompt (prompt.py)
    style='flat:0.6+watercolor:0.4'                                where the model's styles are LoRAs on one base
"""
from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from modelscope_cartoon import checks
from modelscope_cartoon.errors import DamagedWeights, InvalidRequest, ModelError, UnknownOption
from modelscope_cartoon.names import did_you_mean
from modelscope_cartoon.styles import get_style

MIN_SCALE, MAX_SCALE = -4.0, 4.0      # beyond them nothing but noise is left
MAX_LORAS = 16                        # on one picture
WEIGHTS = 'pytorch_lora_weights.safetensors'
DEFAULT_FOLDER = 'loras'
_PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl')


class LoraChoice(NamedTuple):
    """A LoRA to draw with: the name to show, the file or folder, and how strongly."""
    name: str
    path: str
    scale: float


def check_lora(key: str, value: Any) -> tuple[tuple[str, float], ...]:
    """(path or name, scale) of each LoRA that the request field `lora` asks for."""
    many = [value] if _is_name(value) or _is_pair(value) else value
    if not isinstance(many, (list, tuple)):
        raise _not_accepted(key, value)
    return tuple(_checked(key, one) for one in many)


def _checked(key: str, one: Any) -> tuple[str, float]:
    name, scale = one if _is_pair(one) else (one, 1.0)
    if not _is_name(name):
        raise _not_accepted(key, one)
    return str(name), checks.number(f'the scale of {key} {str(name)!r}', scale, MIN_SCALE, MAX_SCALE)


def _is_name(value: Any) -> bool:
    return isinstance(value, (str, PurePath)) and bool(str(value).strip())


def _is_pair(value: Any) -> bool:
    return (isinstance(value, (list, tuple)) and len(value) == 2 and _is_name(value[0])
            and not isinstance(value[1], (str, PurePath, list, tuple)))


def _not_accepted(key: str, value: Any) -> InvalidRequest:
    return InvalidRequest(f'{key} is {checks.shown(value)}; accepted: a file or folder, its name, (name, scale), or a '
                          'list of those.')


def check_style(key: str, value: Any) -> str:
    """The style's name as written in the table; a mix comes out as 'flat:0.6+watercolor:0.4'."""
    if not isinstance(value, str) or not set(':+') & set(value):
        return get_style(value).name
    weights: dict[str, float] = {}
    for part in value.split('+'):
        name, colon, weight = part.partition(':')
        style = get_style(name).name
        if style in weights:
            raise InvalidRequest(f'{key} names {style!r} twice; give it one weight.')
        weights[style] = _weight(key, value, weight) if colon else 1.0
    if list(weights.values()) == [1.0]:
        return next(iter(weights))
    return '+'.join(f'{style}:{weight!r}' for style, weight in weights.items())


def _weight(key: str, value: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        raise InvalidRequest(f'{key} is {checks.shown(value)}; accepted: a style, or styles with weights such as '
                             "'flat:0.6+watercolor:0.4'.") from None
    return checks.number(f'the weight in {key} {value!r}', weight, MIN_SCALE, MAX_SCALE)


def style_weights(style: str) -> dict[str, float]:
    """{'flat': 0.6, 'watercolor': 0.4} of what check_style returned; a plain style has the weight 1."""
    parts = (part.partition(':') for part in style.split('+'))
    return {name: float(weight) if colon else 1.0 for name, colon, weight in parts}


def combined(choices: Iterable[LoraChoice]) -> tuple[LoraChoice, ...]:
    """One entry a file, in the order asked for: asked for twice, its scales add up. A scale of 0 is no LoRA."""
    merged: dict[str, LoraChoice] = {}
    for choice in choices:
        before = merged.get(os.path.realpath(choice.path), choice._replace(scale=0.0))
        total = checks.number(f'the scale of lora {choice.name!r}', before.scale + choice.scale, MIN_SCALE, MAX_SCALE)
        merged[os.path.realpath(choice.path)] = before._replace(scale=total)
    wanted = tuple(choice for choice in merged.values() if choice.scale)
    if len(wanted) > MAX_LORAS:
        raise InvalidRequest(f'{len(wanted)} LoRAs for one picture; accepted: at most {MAX_LORAS}.')
    return wanted


@dataclass(frozen=True)
class LoraShelf:
    """Where names are looked up: the model's own LoRAs (name -> folder), then a folder of LoRA files.

    folder None: ./loras where there is one.
    """
    own: Mapping[str, str]
    folder: str | None = None

    def __post_init__(self) -> None:
        if self.folder is not None and not os.path.isdir(self.folder):
            raise InvalidRequest(f'lora_dir is {checks.shown(self.folder)}, which is no folder.')

    def known(self) -> dict[str, str]:
        return {**_files_in(Path(self.folder or DEFAULT_FOLDER)), **self.own}

    def find(self, given: str, scale: float) -> LoraChoice:
        """`given` is a file, a folder with a LoRA in it, or a name."""
        if os.path.isfile(given) or (os.path.isdir(given) and not self._is_known(given)):
            weights_file(given)
            return LoraChoice(name_of(given), given, scale)
        return self.named(given, scale)

    def named(self, name: str, scale: float) -> LoraChoice:
        """By name alone, never a path: what stands in a prompt can't reach for files."""
        known = self.known()
        by_fold = {key.casefold(): key for key in known}
        key = by_fold.get(name.strip().casefold().removesuffix('.safetensors'))
        if key is None:
            names = ', '.join(list(known)[:20]) or 'none'
            raise UnknownOption(f'no LoRA {name!r}{did_you_mean(name, known)}; names known here: {names}; lora= '
                                f'(--lora) takes a file or folder too, lora_dir= (--lora-dir) a folder of them '
                                f'(./{DEFAULT_FOLDER} by itself).')
        return LoraChoice(key, known[key], scale)

    def _is_known(self, name: str) -> bool:
        return name.casefold() in {key.casefold() for key in self.known()}


def name_of(path: str) -> str:
    """A file's name without its ending; a folder's name, or its repository's where it is a snapshot of the hub's."""
    if os.path.isfile(path):
        return Path(path).stem
    folder = Path(path).resolve()
    return folder.parent.parent.name.rpartition('--')[2] if folder.parent.name == 'snapshots' else folder.name


def _files_in(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        return {}
    files = {path.stem: str(path) for path in sorted(folder.glob('*.safetensors')) if path.is_file()}
    return {path.parent.name: str(path.parent) for path in sorted(folder.glob(f'*/{WEIGHTS}'))} | files


def weights_file(path: str | Path) -> Path:
    """The safetensors file that `path`, a file or a folder, means. A pickle is refused: reading it may run its code."""
    path = Path(path)
    if path.suffix.lower() in _PICKLES:
        raise DamagedWeights(f'{path} is a pickle, and reading one can run code that it holds; accepted: a safetensors '
                             'file.')
    if path.is_file():
        return path
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    found = sorted(path.glob('*.safetensors')) if path.is_dir() else []
    if len(found) == 1:
        return found[0]
    if path.is_dir() and not found and any(file.suffix in _PICKLES for file in path.iterdir()):
        raise DamagedWeights(f'{path} holds pickles only, and reading one can run code that it holds; accepted: a '
                             'safetensors file.')
    raise ModelError(f'{path} holds {len(found) or "no"} safetensors files where one LoRA was looked for; give the '
                     f'file itself, or a folder with {WEIGHTS}.')
