"""The compare command: one's own prompts through presets and backends, side by side, with what each costs.

A candidate is a backend and settings; all draw the same prompts with the same seeds, through the same pipeline as
`draw`. The first is the yardstick: preset `exact` on torch. One model at a time is in memory.
"""
from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from modelscope_cartoon.candidates import Candidate, draw_all
from modelscope_cartoon.drawing import best_device, read_prompts
from modelscope_cartoon.errors import InvalidPrompt
from modelscope_cartoon.files import write_json
from modelscope_cartoon.presets import EXACT, ROWS, get_preset
from modelscope_cartoon.request import parse_request

_TORCH = 'torch'
_SHARED = ('style', 'negative_prompt', 'height', 'width')
_OWN = ('scheduler', 'num_inference_steps', 'guidance_interval', 'cache_interval')


def add_options(compare: argparse.ArgumentParser) -> None:
    compare.add_argument('model', metavar='MODEL', help='mini, a style, a hub id, or a folder')
    compare.add_argument('--prompt', nargs='+', metavar='TEXT', help='what to draw; several are columns')
    compare.add_argument('--prompt-file', metavar='FILE', help='prompts from a file, one a line ("-": standard input)')
    compare.add_argument('--preset', nargs='+', default=[row.name for row in ROWS], metavar='NAME',
                         help=f'default: {" ".join(row.name for row in ROWS)}')
    compare.add_argument('--backend', nargs='+', default=['auto'], metavar='NAME',
                         help='default (auto): torch, and what is prepared for this model')
    compare.add_argument('--scheduler', help='with these four a candidate of your own:')
    compare.add_argument('--num-inference-steps', '--steps', type=int, metavar='N', help='its steps')
    compare.add_argument('--guidance-interval', nargs=2, type=float, metavar=('START', 'STOP'))
    compare.add_argument('--cache-interval', type=int, metavar='N')
    compare.add_argument('--seed', nargs='+', type=int, default=[0], help='one picture a prompt for each; default: 0')
    compare.add_argument('--style', help='one style, or a mix')
    compare.add_argument('--negative-prompt', help='what not to draw')
    compare.add_argument('--height', type=int)
    compare.add_argument('--width', type=int)
    compare.add_argument('--device', help='gpu (the CPU where there is none), cpu, cuda:1')
    compare.add_argument('--dtype', default='auto', help='auto, float32, float16, bfloat16')
    compare.add_argument('--memory', default='auto', help='auto, full, low, min')
    compare.add_argument('--output', '-o', default='compare', metavar='DIR', help='default: ./compare')
    compare.add_argument('--json', action='store_true', help='machine-readable output')


def compare(arguments: argparse.Namespace) -> int:
    """Draws, writes sheet.png, the pictures and compare.json; exit code 1 where a candidate failed."""
    shared = {key: getattr(arguments, key) for key in _SHARED}
    requests = [{'text': prompt, 'seed': seed, **shared} for prompt in _prompts(arguments) for seed in arguments.seed]
    settings = _settings(arguments)
    for request, one in itertools.product(requests, settings):
        parse_request({**request, **one})     # what can't be drawn is said before anything is loaded
    candidates = [Candidate(backend, one) for backend in _backends(arguments) for one in settings]
    folder = Path(arguments.output)
    for backend, group in itertools.groupby(candidates, key=lambda candidate: candidate.backend):
        draw_all(list(group), requests, folder, arguments.model, device=arguments.device or best_device(),
                 dtype=arguments.dtype, memory=arguments.memory, backend=backend)
    rows = [_row(candidate, candidates[0]) for candidate in candidates]
    report = {'model': arguments.model, 'requests': requests, 'reference': candidates[0].name, 'candidates': rows,
              'sheet': _write_sheet(candidates, rows, requests, folder, arguments.model)}
    write_json(folder / 'compare.json', report)
    print(json.dumps(report, ensure_ascii=False, indent=2) if arguments.json else _table(rows, report['sheet']))
    return 1 if any(candidate.fault for candidate in candidates) else 0


def _prompts(arguments: argparse.Namespace) -> list[str]:
    if (arguments.prompt is None) == (arguments.prompt_file is None):
        raise InvalidPrompt('give --prompt, or --prompt-file, and not both: '
                            'modelscope-cartoon compare mini --prompt "a portrait painting of a woman"')
    return arguments.prompt or read_prompts(arguments.prompt_file)


def _settings(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    presets = [EXACT, *(get_preset(name).name for name in arguments.preset)]
    own = {key: getattr(arguments, key) for key in _OWN if getattr(arguments, key) is not None}
    return [{'preset': name} for name in dict.fromkeys(presets)] + ([own] if own else [])


def _backends(arguments: argparse.Namespace) -> list[str]:
    """torch first. auto: those that would be recommended for this model, were they alone."""
    import torch
    from modelscope.utils.device import create_device

    from modelscope_cartoon import backends, weights
    from modelscope_cartoon.folder import ModelFolder
    from modelscope_cartoon.hub import base_folder, local_model
    from modelscope_cartoon.precision import best_dtype, parse_dtype

    names = [backends.parse_backend(name) for name in arguments.backend]
    if 'auto' in names:
        folder = ModelFolder(base_folder(local_model(arguments.model)))
        device = create_device(arguments.device or best_device())
        dtype = parse_dtype(arguments.dtype) or best_dtype(device, weights.parameter_bytes(folder, torch.float32))
        for name in backends.NAMES[1:]:
            backend = backends.get_backend(name)
            if not (backend.missing(device) or backend.obstacle(folder)) and backend.recommended(folder, device, dtype):
                names.append(name)
    return [name for name in dict.fromkeys([_TORCH, *names]) if name != 'auto']


def _row(candidate: Candidate, reference: Candidate) -> dict[str, Any]:
    """What of a candidate goes into compare.json. Distances are means over the pictures, to `reference`'s."""
    import numpy as np

    row = {'name': candidate.name, 'backend': candidate.backend, 'settings': candidate.settings,
           'seconds': candidate.seconds, 'evaluations': candidate.evaluations, 'files': candidate.files,
           'latent_distance': None, 'pixel_distance': None, 'fault': candidate.fault}
    if candidate.fault or reference.fault:
        return row
    latents, images = (list(zip(getattr(candidate, kind), getattr(reference, kind))) for kind in ('latents', 'images'))
    return {**row, 'latent_distance': fmean(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in latents),
            'pixel_distance': fmean(float(np.abs(a.astype(float) - b).mean()) for a, b in images)}


def _table(rows: Sequence[dict[str, Any]], sheet: str | None) -> str:
    """Seconds a picture (median), how many times as fast as the first row, UNet evaluations, distances to it."""
    wide = max(len(row['name']) for row in rows)
    lines = [f'{"":<{wide}}  seconds  faster  UNet calls  latents  pixels']
    for row in rows:
        if row['fault']:
            lines.append(f'{row["name"]:<{wide}}  {row["fault"]}')
            continue
        seconds, first = median(row['seconds']), median(rows[0]['seconds'] or [math.nan])
        far, grey = (math.nan if row[key] is None else row[key] for key in ('latent_distance', 'pixel_distance'))
        lines.append(f'{row["name"]:<{wide}}  {seconds:7.2f}  {first / seconds:5.1f}x  '
                     f'{median(row["evaluations"]):10.0f}  {far:7.3f}  {grey:6.2f}')
    return '\n'.join([*lines, sheet or 'no picture was drawn'])


def _write_sheet(candidates: Sequence[Candidate], rows: Sequence[dict[str, Any]], requests: Sequence[dict[str, Any]],
                 folder: Path, model: str) -> str | None:
    """A row a candidate, a column a request. None where nothing was drawn."""
    from modelscope_cartoon.sheet_axes import Cell, Label, Section, Sheet
    from modelscope_cartoon.sheet_layout import write_sheet

    if all(candidate.fault for candidate in candidates):
        return None
    columns = [Label(request['text'], f'种子 seed {request["seed"]}') for request in requests]
    labels = [Label(candidate.name, _costs(row)) for candidate, row in zip(candidates, rows)]
    cells = [[Cell(request, candidate.name, Path(file) if file else None, fault=candidate.fault)
              for request, file in itertools.zip_longest(requests, candidate.files)] for candidate in candidates]
    page = Sheet('比较 presets and backends', [Section('', columns, labels, cells)], settings=model)
    return str(write_sheet(page, folder / 'sheet.png'))


def _costs(row: dict[str, Any]) -> str:
    if row['fault']:
        return ''
    words = [f'{median(row["seconds"]):.1f} s']
    if row['latent_distance']:
        words += [f'latents {row["latent_distance"]:.3f}', f'pixels {row["pixel_distance"]:.1f}']
    return ', '.join(words)
