"""Which files of a model folder may go to the hub, and why each of the others stays.

What isn't known stays: a kind is added here, never guessed.
"""
from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelscope_cartoon.errors import BadConfiguration

MODEL = re.compile(
    r'model_index\.json|(unet|vae|text_encoder)/config\.json|scheduler/scheduler_config\.json'
    r'|tokenizer/(vocab|tokenizer|tokenizer_config|special_tokens_map|added_tokens)\.json|tokenizer/merges\.txt'
    r'|loras/[\w-]+/pytorch_lora_weights\.safetensors|words\.txt|recipe\.json|(NOTICE|LICENSE)(\.md|\.txt)?')
ADAPTER = re.compile(r'[\w.-]+\.safetensors|recipe\.json|(NOTICE|LICENSE)(\.md|\.txt)?')
_PLACE = re.compile(r'(/|~[\\/]|[A-Za-z]:[\\/]|\\\\).*[\w.]')
_WRITTEN = ('README.md', 'configuration.json', 'ms_wrapper.py', 'requirements.txt', 'manifest.json')
_REASONS = (      # by the whole name, any case; the first that matches
    (r'(.*/)?(id_[a-z0-9]+|.*\.(pem|key|p12|pfx|kdbx|env))', 'may be a secret'),
    (r'(.*/)?(__pycache__|cache)/', 'a cache'),
    (r'(safety_checker|feature_extractor)/.*', 'no part of drawing'),
    (r'.*\.(bin|ckpt|pt|pth|pkl|pickle|msgpack|onnx)', 'not the weights that are loaded, or a pickle'),
    (r'.*\.safetensors(\.index.*\.json)?', 'not the weights that are loaded'),
    (r'samples/.*|description/.*', 'pictures are drawn anew'),
    (r'.*', 'not a kind of file that goes up'))


@dataclass(frozen=True)
class Sorted:
    """kept: relative names, in order. left_out: relative name (a folder's ends in /) -> why."""
    kept: tuple[str, ...]
    left_out: dict[str, str]


def sort_files(root: Path, kinds: re.Pattern[str], used: Iterable[str] = ()) -> Sorted:
    """The files of `root`; those in `used` (weights that are read from it) are in neither list."""
    used = set(used)
    kept, left_out = [], {}
    for name in _names(root):
        reason = _link_or_hidden(root, name)
        if reason is None and name in used:
            continue
        if reason is None and kinds.fullmatch(name):
            kept.append(name)
        else:
            left_out[name] = reason or _reason(name)
    return Sorted(tuple(kept), left_out)


def _names(root: Path) -> Iterator[str]:
    """Files, and folders that are not looked into: links, hidden ones, caches."""
    for top, folders, files in os.walk(root):
        place = Path(top).relative_to(root)
        closed = [f for f in folders if f.startswith('.') or f == '__pycache__' or Path(top, f).is_symlink()]
        folders[:] = sorted(set(folders) - set(closed))
        yield from sorted([(place / f).as_posix() for f in files] + [f'{(place / f).as_posix()}/' for f in closed])


def _link_or_hidden(root: Path, name: str) -> str | None:
    if (root / name).is_symlink():
        return 'a link'
    return 'hidden' if Path(name).name.startswith('.') else None


def _reason(name: str) -> str:
    if name in _WRITTEN:
        return 'written anew'
    return next(reason for pattern, reason in _REASONS if re.fullmatch(pattern, name, re.IGNORECASE))


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise BadConfiguration(f'{path} is not a JSON file that can be read ({error}).') from error
    if not isinstance(value, dict):
        raise BadConfiguration(f'{path} holds a {type(value).__name__}; accepted: a JSON object.')
    return value


def public_json(path: Path) -> dict[str, Any]:
    """A JSON file with the paths of the machine it was made on cut to their last part."""
    return without_paths(read_json(path))


def public_recipe(path: Path) -> dict[str, Any]:
    """recipe.json, with the training pictures (names, captions) as their number; empty where there is none."""
    recipe = public_json(path) if path.is_file() else {}
    return {key: len(value) if isinstance(value, list) and any(isinstance(one, dict) for one in value) else value
            for key, value in recipe.items()}


def without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if isinstance(value, str) and _PLACE.match(value):
        return re.split(r'[\\/]', value.rstrip('\\/'))[-1]
    return value
