"""The replay command: a picture drawn again from its own recipe, and how far off that is.

It takes what is recorded (backend, precision, device, threads, scheduler) where this machine has it, so that the
picture comes out bit for bit where it can. docs/replay.md.
"""
from __future__ import annotations

import argparse
import contextlib
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from modelscope_cartoon.errors import InvalidRequest
from modelscope_cartoon.files import write_file
from modelscope_cartoon.recorded import (
    Recorded,
    document,
    each,
    flaw_of,
    model_of,
    plain,
    read,
    recipe_of,
    request_of,
    scheduler_of,
)
from modelscope_cartoon.request import parse_request

_MOST_THREADS = 1024
_LARGEST_BATCH = 16     # that is drawn in full to see whether the batch is why a picture differs
_DTYPES, _MEMORY = ('float32', 'float16', 'bfloat16'), ('full', 'low', 'min')


def add_options(replay: argparse.ArgumentParser) -> None:
    replay.add_argument('files', nargs='+', metavar='FILE', help='pictures that modelscope-cartoon drew')
    replay.add_argument('--model', metavar='MODEL', help='what to draw with; default: the recorded one')
    replay.add_argument('--lora-dir', metavar='FOLDER', help='where LoRA files are; default: ./loras')
    replay.add_argument('--device', help='gpu, cpu, cuda:1; default of these four: as recorded')
    replay.add_argument('--dtype', help='auto, float32, float16, bfloat16')
    replay.add_argument('--backend', help='auto, compile, openvino, torch, int8')
    replay.add_argument('--memory', help='auto, full, low, min')
    replay.add_argument('--output', '-o', metavar='PATH', help='keep what is drawn: a file, or a folder')
    replay.add_argument('--json', action='store_true', help='machine-readable output')


def replay(arguments: argparse.Namespace) -> int:
    """Exit code 0 where every picture is bit-equal, 1 where one differs, 2 where one can't be replayed."""
    player = _Player(arguments)

    def play(file: str) -> tuple[dict[str, Any], int]:
        entry = player.play(file)
        if not arguments.json:
            print('\n'.join(_lines(entry)), flush=True)
        return entry, 0 if entry['bit_equal'] else 1
    entries, code = each(arguments.files, play, lambda words: print(f'modelscope-cartoon: {words}', file=sys.stderr))
    if arguments.json:
        print(document(entries))
    return code


def _lines(entry: dict[str, Any]) -> Iterator[str]:
    kept = f'; kept as {entry["output"]}' if entry['output'] else ''
    if entry['bit_equal']:
        yield f'{plain(entry["file"])}: bit-equal{kept}'
        return
    far = '' if entry['share'] is None else (
        f': {100 * entry["share"]:.3g} % of the values differ, by {entry["largest"]} of 255 grey levels at most and '
        f'{entry["mean"]:.3g} on average')
    yield f'{plain(entry["file"])}: different{far}{kept}'
    yield from (f'  {reason}' for reason in entry['reasons'])


class _Player:
    """Draws recipes; the last model stays loaded, for the next picture that needs it."""

    def __init__(self, arguments: argparse.Namespace):
        self._arguments = arguments
        self._loaded: tuple[Any, Any] = (None, None)

    def play(self, file: str) -> dict[str, Any]:
        from modelscope_cartoon.differing import compare

        recorded = read(file)
        _check(recorded)
        target = _target(self._arguments, file)
        request = request_of(recorded)
        scheduler = scheduler_of(recorded, parse_request(request).num_inference_steps)
        pipe = self._pipe(recorded)
        pipe.pipeline.scheduler = scheduler
        request = {**request, 'lora': [(pipe.preprocessor.shelf.named(name, scale).path, scale)
                                       for name, scale in request.get('lora', ())]}
        started = time.perf_counter()
        with _threads(recorded.of('machine', 'threads')):
            image, now = _draw(pipe, request, 1)
            batch = recorded.of('machine', 'batch_size')
            if now['pixels_sha256'] != recorded.of('pixels_sha256') and batch in range(2, _LARGEST_BATCH + 1):
                image, now = _draw(pipe, request, batch)
        seconds = round(time.perf_counter() - started, 3)
        return {'file': file, **compare(recorded, image, now), 'seconds': seconds,
                'output': str(_save(target, image, now)) if target else None}

    def _pipe(self, recorded: Recorded) -> Any:
        from modelscope_cartoon import load_pipeline

        wanted = (self._arguments.model or model_of(recorded), *_options(recorded, self._arguments).items())
        if self._loaded[0] != wanted:
            self._loaded = (None, None)     # one model at a time is in memory
            name, *options = wanted
            pipe = load_pipeline(name, **dict(options))
            pipe.preprocessor.defaults = {}     # a recipe says all of it, whatever the model's folder says today
            self._loaded = (wanted, pipe)
        return self._loaded[1]


def _check(recorded: Recorded) -> None:
    if recorded.recipe is None and not recorded.faults and recorded.parameters:
        raise InvalidRequest("it holds A1111's parameters alone, which don't say enough to draw it bit by bit; draw "
                             f'one of the same settings: modelscope-cartoon draw -C {recorded.file}')
    recipe_of(recorded)
    if flaw := flaw_of(recorded):
        raise InvalidRequest(f'its pixels can\'t be read ({flaw}).')
    noise = recorded.of('machine', 'noise')
    if noise != 'cpu':
        raise InvalidRequest(f'its noise came from the caller ({plain(noise, 40)}), and the file doesn\'t hold it; '
                             f'draw one of the same settings: modelscope-cartoon draw -C {recorded.file} --seed 1')


def _draw(pipe: Any, request: dict[str, Any], copies: int) -> tuple[np.ndarray, dict[str, Any]]:
    """The picture, uint8 [H, W, 3], RGB, drawn in one batch with `copies` - 1 others like it; and its recipe."""
    output = pipe([{**request, 'output_type': 'rgb'}] * copies, batch_size=copies)[0]
    return output['output_imgs'][0], output['recipes'][0]


def _options(recorded: Recorded, arguments: argparse.Namespace) -> dict[str, Any]:
    """load_pipeline's: what is given, else what is recorded, else what this machine would take."""
    import torch

    from modelscope_cartoon.backends import NAMES, get_backend

    device = arguments.device or _device(recorded.of('machine', 'device'))
    backend, dtype, memory = (recorded.of('machine', key) for key in ('backend', 'dtype', 'memory'))
    if backend not in NAMES[1:] or get_backend(backend).missing(torch.device('cuda' if 'cu' in device else 'cpu')):
        backend = 'auto'
    return {'device': device, 'lora_dir': arguments.lora_dir, 'backend': arguments.backend or backend,
            'dtype': arguments.dtype or (dtype if dtype in _DTYPES else 'auto'),
            'memory': arguments.memory or (memory if memory in _MEMORY else 'auto')}


def _device(name: Any) -> str:
    import torch

    match = re.fullmatch(r'cuda(?::(\d{1,3}))?', name) if isinstance(name, str) else None
    if match is None or not torch.cuda.is_available():
        return 'cpu'
    return name if int(match[1] or 0) < torch.cuda.device_count() else 'cuda:0'


@contextlib.contextmanager
def _threads(count: Any) -> Iterator[None]:
    """torch computes with `count` threads inside, since sums depend on how they are shared out."""
    import torch

    before = torch.get_num_threads()
    if type(count) is int and 1 <= count <= _MOST_THREADS:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _target(arguments: argparse.Namespace, file: str) -> Path | None:
    """Where the new picture goes: --output itself for one file, else the file's name in the folder."""
    from modelscope_cartoon.formats import format_of_suffix

    if arguments.output is None:
        return None
    given = Path(arguments.output)
    path = given if given.suffix and not given.is_dir() else given / Path(file).name
    if path == given and len(arguments.files) > 1:
        raise InvalidRequest(f'--output {given} is one file for {len(arguments.files)} pictures; give a folder.')
    if path.resolve() == Path(file).resolve():
        raise InvalidRequest(f'--output {given} would replace the picture itself; give another place.')
    format_of_suffix(path.suffix)
    return path


def _save(path: Path, image: np.ndarray, recipe: dict[str, Any]) -> Path:
    from PIL import Image

    from modelscope_cartoon import metadata
    from modelscope_cartoon.formats import format_of_suffix

    return write_file(path, metadata.write(Image.fromarray(image), format_of_suffix(path.suffix).name.upper(), recipe))
