"""The command line: `modelscope-cartoon draw ...`, and the same as `modelscope cartoon draw ...`.

Thin: parses, builds the same dicts that pipeline() takes, calls the pipeline, saves. stdout is the result (text, or
JSON with --json), stderr what is said on the way. Exit codes: 0 done, 1 failure, 2 bad input, 130 interrupted.
Nothing heavy is imported before a command needs it: the host loads this module for each of its own commands.
"""
from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from modelscope_cartoon import __version__
from modelscope_cartoon.errors import CartoonError, Stopped
from modelscope_cartoon.labels import VISIBLE as LABEL
from modelscope_cartoon.metadata import KINDS
from modelscope_cartoon.names import did_you_mean
from modelscope_cartoon.presets import ROWS as PRESETS
from modelscope_cartoon.schedulers import ROWS as SCHEDULERS
from modelscope_cartoon.styles import styles

# each a function of the parsed arguments that gives the exit code
_COMMANDS = {'draw': 'drawing.draw', 'train': 'teaching.teach', 'prepare': 'preparing.prepare',
             'compare': 'comparing.compare', 'publish': 'publishing.publish', 'doctor': 'doctor.report',
             'sheet': 'sheeting.sheet', 'batch': 'batching.batch', 'inspect': 'inspecting.inspect',
             'replay': 'replaying.replay', 'styles': 'cli.list_styles'}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _Parser(prog='modelscope-cartoon', description='Cartoon pictures from text.')
    parser.add_argument('--version', action='version', version=f'modelscope-cartoon {__version__}')
    commands = _add_commands(parser)
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = commands.choices[parsed.cartoon_command].format_usage().replace('[', ' ').split()
        parser.error(f'unknown argument {unknown[0]!r}{did_you_mean(unknown[0], known)}; '
                     f'all of them: modelscope-cartoon {parsed.cartoon_command} --help')
    return run(parsed)


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, as everywhere here, instead of the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'modelscope-cartoon: {message}\n')


def _add_commands(parser: argparse.ArgumentParser) -> Any:
    commands = parser.add_subparsers(dest='cartoon_command', metavar='COMMAND', required=True)
    _add_draw(commands.add_parser('draw', help='draw pictures from a prompt'))
    _with_own_options(commands, 'sheet', 'styles, seeds, settings against each other: one picture, one page')
    _with_own_options(commands, 'inspect', "what a picture's file says of how it was drawn")
    _with_own_options(commands, 'replay', 'draw a picture again from its file, and compare')
    _add_publish(commands.add_parser('publish', help='build a model repository, check it, and upload it to the hub'))
    _add_prepare(commands.add_parser('prepare', help='convert a model once, so that it starts faster and smaller'))
    _with_own_options(commands, 'compare', 'your prompts through presets and backends, side by side')
    _add_metadata(_with_own_options(commands, 'batch', 'a file of requests into a folder, whatever ends the process'))
    _with_own_options(commands, 'train', 'teach a model a style from 10 to 100 pictures')
    for name, text in (('styles', 'list the styles'), ('doctor', 'what is installed, cached, slow or missing')):
        commands.add_parser(name, help=text).add_argument('--json', action='store_true', help='machine-readable output')
    commands.choices['doctor'].add_argument('--verify', action='store_true', help="check every model's files")
    return commands


def _add_draw(draw: argparse.ArgumentParser) -> None:
    draw.add_argument('prompt', nargs='?', help='what to draw, in English')
    draw.add_argument('--prompt-file', metavar='FILE', help='prompts from a file, one a line ("-": standard input)')
    draw.add_argument('--config-from-metadata', '-C', metavar='FILE',
                      help="what isn't given here as this picture's file has it, ours or A1111's")
    draw.add_argument('--style', nargs='+', default=[], metavar='STYLE',
                      help=f'{", ".join(styles())}, or all; a mix: flat:0.6+watercolor:0.4')
    draw.add_argument('--lora', nargs='+', action='append', default=[], metavar=('PATH', 'SCALE'),
                      help='a LoRA file, folder or name, and how strongly (1); may be given several times')
    draw.add_argument('--lora-dir', metavar='FOLDER', help='LoRA files for <lora:name:0.8>; default: ./loras')
    draw.add_argument('--model', default=None, metavar='MODEL',
                      help='mini (default), full (the full-size model of each style), a hub id, or a folder')
    draw.add_argument('--seed', nargs='+', type=int, default=[None], help='one picture for each seed')
    draw.add_argument('--negative-prompt', help='what not to draw')
    draw.add_argument('--no-trigger', action='store_true', help="leave the style's trigger words out")
    draw.add_argument('--num-images-per-prompt', '-n', type=int, metavar='N')
    draw.add_argument('--height', type=int, help="pixels, a multiple of 8; default: the model's own")
    draw.add_argument('--width', type=int, help='the same')
    draw.add_argument('--preset', metavar='NAME', help='; '.join(f'{row.name}: {row.words}' for row in PRESETS))
    draw.add_argument('--num-inference-steps', '--steps', type=int, metavar='N')
    draw.add_argument('--guidance-scale', '--guidance', type=float, metavar='X')
    draw.add_argument('--guidance-interval', nargs=2, type=float, metavar=('START', 'STOP'),
                      help='guidance on these of the steps alone, as fractions: 0 0.5')
    draw.add_argument('--cache-interval', type=int, metavar='N',
                      help='every N-th UNet call is whole, the others reuse its deep features')
    draw.add_argument('--scheduler', help=', '.join(row.label for row in SCHEDULERS))
    draw.add_argument('--device', help='gpu (the CPU where there is none), cpu, cuda:1')
    draw.add_argument('--dtype', default='auto', help='auto, float32, float16, bfloat16')
    draw.add_argument('--backend', default='auto', help='what runs the networks: auto, compile, openvino, torch, int8')
    draw.add_argument('--memory', default='auto', help='auto, full, low, min')
    draw.add_argument('--output', '-o', metavar='PATH', help='file (.png, .jpg, .webp) or folder; default: ./')
    _add_metadata(draw)
    draw.add_argument('--json', action='store_true', help='machine-readable output')


def _add_metadata(draw: argparse.ArgumentParser) -> None:
    which = draw.add_mutually_exclusive_group()
    which.add_argument('--metadata', nargs='+', metavar='KIND',
                       help=f'what the file holds besides its pixels: {", ".join(KINDS)}; default: all of them')
    which.add_argument('--no-metadata', dest='metadata', action='store_const', const=[],
                       help='pixels alone: no recipe, no "made by AI" label')
    draw.add_argument('--label', nargs='?', const=LABEL, metavar='WORDS', help=f'words in the corner ({LABEL})')


def _add_publish(publish: argparse.ArgumentParser) -> None:
    publish.add_argument('source', metavar='DIR', help='a model folder, an adapter folder, or what --output kept')
    publish.add_argument('--to', required=True, metavar='OWNER/NAME', help='where on the hub')
    publish.add_argument('--dry-run', action='store_true', help='build and check everything, send nothing')
    publish.add_argument('--style', metavar='STYLE', help=f'what it draws: {", ".join(styles())}')
    publish.add_argument('--licence', '--license', metavar='SPDX', help='default: that of the five for one of them')
    publish.add_argument('--tag', dest='revision', help="a tag to set, which the card's snippet names: v1.0.0")
    publish.add_argument('--base-model', metavar='ID', help='the hub id of what it was tuned from')
    publish.add_argument('--training', metavar='TEXT', help='what the card says of the training data')
    publish.add_argument('--chinese-name', metavar='TEXT', help='the name that the hub shows')
    publish.add_argument('--private', action='store_true', help='only you see it (when it is new)')
    publish.add_argument('--token', help='else MODELSCOPE_API_TOKEN, or that of `modelscope login`')
    publish.add_argument('--output', '-o', metavar='DIR', help='keep the built folder')
    publish.add_argument('--device', help='what draws the sample pictures: gpu, cpu, cuda:1')


def _add_prepare(prepare: argparse.ArgumentParser) -> None:
    what = prepare.add_mutually_exclusive_group(required=True)
    what.add_argument('model', nargs='?', metavar='MODEL', help='a style, a hub id, or a folder')
    what.add_argument('--list', action='store_true', help='what was prepared, with its size on disk')
    what.add_argument('--remove', metavar='MODEL', help='delete what was prepared for a model, or an entry of --list')
    prepare.add_argument('--dtype', default='bfloat16', help='bfloat16 (default), float16')
    prepare.add_argument('--backend', default='auto',
                         help='what to prepare it for: auto (all that run here), openvino, torch, int8')
    prepare.add_argument('--accept', action='store_true',
                         help='int8: keep it whatever it costs; otherwise you are asked, with the distance in sight')
    prepare.add_argument('--device', help='gpu (the CPU where there is none), cpu, cuda:1')
    prepare.add_argument('--json', action='store_true', help='machine-readable output')


def _with_own_options(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    """A command whose module adds its options itself."""
    parser = commands.add_parser(name, help=text)
    _module(name).add_options(parser)
    return parser


def _module(command: str) -> Any:
    return importlib.import_module(f'modelscope_cartoon.{_COMMANDS[command].partition(".")[0]}')


def run(arguments: argparse.Namespace) -> int:
    """The exit code of a parsed command; a user's mistake is one sentence on stderr."""
    log_to_stderr()
    try:
        return _execute(arguments)
    except CartoonError as error:
        print(f'modelscope-cartoon: {error}', file=sys.stderr)
        return error.exit_code
    except Stopped as stopped:
        print(f'modelscope-cartoon: {stopped}', file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        kept = {'draw': 'the pictures named above are saved.', 'compare': 'the pictures drawn so far are saved.',
                'replay': 'what was printed is done.'}.get(
            arguments.cartoon_command, 'again, it goes on.')
        print(f'modelscope-cartoon: interrupted; {kept}', file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1


def _execute(arguments: argparse.Namespace) -> int:
    function = _COMMANDS[arguments.cartoon_command].partition('.')[2]
    return getattr(_module(arguments.cartoon_command), function)(arguments)


def list_styles(arguments: argparse.Namespace) -> int:
    if arguments.json:
        import json
        from dataclasses import asdict
        print(json.dumps([asdict(style) for style in styles().values()], ensure_ascii=False, indent=2))
        return 0
    for style in styles().values():
        print(f'{style.name:<14}{style.title_zh}  {style.look}\n{"":14}trigger "{style.trigger}", '
              f'full size: {style.model_id} {style.model_revision}, {style.size} px, best with {style.scheduler}')
    return 0


def log_to_stderr() -> None:
    logger = logging.getLogger('modelscope_cartoon')
    if not logger.handlers:
        handler = _ToStderr()
        handler.setFormatter(logging.Formatter('%(message)s'))
        logger.addHandler(handler)
        logger.propagate = False


class _ToStderr(logging.StreamHandler):
    """To what sys.stderr is at that moment, as Python's handler of last resort."""
    stream = property(lambda self: sys.stderr, lambda self, value: None)


class CartoonCommand:
    """`modelscope cartoon ...`: the host's plug-in point (entry-point group modelscope_hub.cli_plugins)."""

    name = 'cartoon'

    def __init__(self, args: argparse.Namespace):
        self.args = args

    @staticmethod
    def register(subparsers: Any) -> None:
        parser = subparsers.add_parser('cartoon', help='cartoon pictures from text')
        _add_commands(parser)
        parser.set_defaults(_command=CartoonCommand)

    def execute(self) -> None:
        code = run(self.args)
        if code:
            sys.exit(code)


if __name__ == '__main__':
    sys.exit(main())
