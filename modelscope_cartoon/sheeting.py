"""The sheet command: prompts, styles, seeds and settings against each other, as one picture and one HTML page."""
from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from pathlib import Path

from modelscope_cartoon import drawing, sheet_pictures
from modelscope_cartoon.errors import InvalidPrompt, ModelError
from modelscope_cartoon.files import write_file
from modelscope_cartoon.formats import format_of_suffix
from modelscope_cartoon.log import each_warning_once
from modelscope_cartoon.presets import ROWS as PRESETS
from modelscope_cartoon.request import parse_request
from modelscope_cartoon.schedulers import ROWS as SCHEDULERS
from modelscope_cartoon.schedulers import get_row
from modelscope_cartoon.sheet_axes import MAX_PICTURES, Cell, Sheet, grid, product_words, settings_line
from modelscope_cartoon.styles import styles

_SHARED = ('negative_prompt', 'height', 'width', 'preset', 'guidance_interval', 'cache_interval')
_AT_ONCE = 4


def add_options(sheet: argparse.ArgumentParser) -> None:
    sheet.add_argument('prompt', nargs='*', help='what to draw, in English; several are an axis')
    sheet.add_argument('--prompt-file', metavar='FILE', help='prompts from a file, one a line ("-": standard input)')
    sheet.add_argument('--style', nargs='+', default=[], metavar='STYLE',
                       help=f'an axis: {", ".join(styles())}, or all; mixes: flat:0.6+watercolor:0.4')
    sheet.add_argument('--seed', nargs='+', type=int, default=[0], help='an axis; default: 0')
    sheet.add_argument('--guidance-scale', '--guidance', nargs='+', type=float, default=[None], metavar='X',
                       help='an axis')
    sheet.add_argument('--num-inference-steps', '--steps', nargs='+', type=int, default=[None], metavar='N',
                       help='an axis')
    sheet.add_argument('--scheduler', nargs='+', default=[None], metavar='NAME',
                       help=f'an axis: {", ".join(row.label for row in SCHEDULERS)}')
    sheet.add_argument('--model', metavar='MODEL',
                       help='mini (default), full (the full-size model of each style), a hub id, or a folder')
    sheet.add_argument('--preset', metavar='NAME', help=', '.join(row.name for row in PRESETS))
    sheet.add_argument('--negative-prompt', help='what not to draw')
    sheet.add_argument('--no-trigger', action='store_true', help="leave the style's trigger words out")
    sheet.add_argument('--height', type=int, help="pixels, a multiple of 8; default: the model's own")
    sheet.add_argument('--width', type=int, help='the same')
    sheet.add_argument('--guidance-interval', nargs=2, type=float, metavar=('START', 'STOP'))
    sheet.add_argument('--cache-interval', type=int, metavar='N')
    sheet.add_argument('--lora', nargs='+', action='append', default=[], metavar=('PATH', 'SCALE'),
                       help='a LoRA file, folder or name, and how strongly (1); may be given several times')
    sheet.add_argument('--lora-dir', metavar='FOLDER', help='LoRA files for <lora:name:0.8>; default: ./loras')
    sheet.add_argument('--device', help='gpu (the CPU where there is none), cpu, cuda:1')
    sheet.add_argument('--dtype', default='auto', help='auto, float32, float16, bfloat16')
    sheet.add_argument('--backend', default='auto', help='what runs the networks: auto, compile, openvino, torch, int8')
    sheet.add_argument('--memory', default='auto', help='auto, full, low, min')
    sheet.add_argument('--batch-size', type=_positive, default=_AT_ONCE, metavar='N',
                       help=f'pictures drawn together; default: {_AT_ONCE}')
    sheet.add_argument('--title', metavar='TEXT', help='default: the prompt')
    sheet.add_argument('--output', '-o', default='sheet.png', metavar='PATH',
                       help=f'a file (.png, .jpg, .webp) or a folder; default: ./sheet.png; at most {MAX_PICTURES} '
                            'pictures. The page and the pictures are beside it')
    sheet.add_argument('--json', action='store_true', help='machine-readable output')


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f'{number}; accepted: a whole number from 1')
    return number


def sheet(arguments: argparse.Namespace) -> int:
    """Draws what is missing, writes the sheet as a picture and as a page; exit code 1 where a picture failed."""
    target = _target(arguments.output)
    page = _empty(arguments)
    with each_warning_once(set()):
        drawn = _draw(arguments, page.cells, target.with_suffix('.pictures'))
    if all(cell.fault for cell in page.cells):
        raise ModelError(f'no picture could be drawn: {page.cells[0].fault}')
    _write(page, target)
    report = {'sheet': str(target), 'page': str(target.with_suffix('.html')), 'drawn': drawn, 'pictures': [
        {'name': cell.name, 'file': None if cell.fault else str(cell.picture), 'fault': cell.fault,
         'request': cell.request, 'recipe': cell.recipe} for cell in page.cells]}
    print(json.dumps(report, ensure_ascii=False, indent=2) if arguments.json
          else f'{report["sheet"]}\n{report["page"]}')
    return _say_faults(page.cells)


def _target(output: str) -> Path:
    """The sheet's file; OUTPUT/sheet.png where it is a folder."""
    path = Path(output)
    if path.is_dir() or not path.suffix:
        path = path / 'sheet.png'
    format_of_suffix(path.suffix)
    return path


def _empty(arguments: argparse.Namespace) -> Sheet:
    """The sheet with everything but its pictures, all of its requests checked."""
    shared = {field: getattr(arguments, field) for field in _SHARED}
    loras = drawing.read_loras(arguments.lora)     # first, because a prompt behind --lora is taken for its scale
    prompts = _prompts(arguments)
    values = {'text': prompts, 'style': drawing.read_styles(arguments.style), 'seed': arguments.seed,
              'guidance_scale': arguments.guidance_scale, 'num_inference_steps': arguments.num_inference_steps,
              'scheduler': [name and get_row(name).label for name in arguments.scheduler]}
    sections = grid(values, {**shared, 'lora': loras, 'trigger': not arguments.no_trigger})
    one = prompts[0] if len(set(prompts)) == 1 else ''
    title = arguments.title or one or product_words(values)
    notes = [one] if arguments.title and one else []
    notes += [f'避免 without: {arguments.negative_prompt}'] if arguments.negative_prompt else []
    page = Sheet(title, sections, ' · '.join(notes))
    for cell in page.cells:
        parse_request(cell.request)
    return page


def _prompts(arguments: argparse.Namespace) -> list[str]:
    if bool(arguments.prompt) == (arguments.prompt_file is not None):
        raise InvalidPrompt('give a prompt, several, or --prompt-file, and not both: '
                            'modelscope-cartoon sheet "a cat" --style all --seed 1 2 3')
    return arguments.prompt or drawing.read_prompts(arguments.prompt_file)


def _draw(arguments: argparse.Namespace, cells: list[Cell], folder: Path) -> int:
    """How many pictures were drawn; those that are there already aren't. One model at a time is loaded."""
    models: dict[str, list[Cell]] = {}
    for cell in cells:
        models.setdefault(drawing.model_of(arguments.model, cell.request['style']), []).append(cell)
    for model, some in models.items():
        try:
            sheet_pictures.place(some, folder, model, arguments.lora_dir, arguments.dtype, arguments.backend)
        except ModelError as error:
            sheet_pictures.fail(some, error)
    missing = {model: sheet_pictures.missing(some) for model, some in models.items()}
    total, done, started = sum(map(len, missing.values())), 0, time.perf_counter()
    for model, some in missing.items():
        load = functools.partial(drawing.load, model, arguments)
        for count in sheet_pictures.draw(some, load, arguments.batch_size) if some else ():
            done += count
            left = (time.perf_counter() - started) / done * (total - done)
            print(f'{len(cells) - total + done} of {len(cells)} pictures ({left:.0f} s left)', file=sys.stderr)
    return sum(cell.fault is None for some in missing.values() for cell in some)


def _write(page: Sheet, target: Path) -> None:
    from modelscope_cartoon.sheet_layout import write_sheet
    from modelscope_cartoon.sheet_page import page_of

    page.settings = settings_line([cell.recipe for cell in page.cells if cell.recipe])
    write_sheet(page, target)
    write_file(target.with_suffix('.html'), page_of(page).encode())


def _say_faults(cells: list[Cell]) -> int:
    faults = [cell for cell in cells if cell.fault]
    for cell in faults:
        print(f'modelscope-cartoon: {cell.name}: {cell.fault}', file=sys.stderr)
    return 1 if faults else 0
