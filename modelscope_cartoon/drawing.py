"""The draw command: prompts x styles x seeds through the pipeline, each picture saved as soon as it is done."""
from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelscope_cartoon import mini
from modelscope_cartoon.config_from_metadata import filled
from modelscope_cartoon.errors import Interrupted, InvalidPrompt, InvalidRequest
from modelscope_cartoon.files import write_file
from modelscope_cartoon.formats import Format, format_of_suffix
from modelscope_cartoon.lora_choice import check_style
from modelscope_cartoon.recorded import document
from modelscope_cartoon.request import parse_request
from modelscope_cartoon.styles import styles

FULL = 'full'
_FIELDS = ('negative_prompt', 'num_images_per_prompt', 'height', 'width', 'preset', 'num_inference_steps',
           'guidance_scale', 'guidance_interval', 'cache_interval', 'scheduler', 'metadata', 'label')
_RECORDED = ('guidance_rescale', 'clip_skip', 'eta')     # no options of their own; -C may bring them


def draw(arguments: argparse.Namespace) -> int:
    """Draws and saves what the command line asks for; prints each file, or with --json one document at the end."""
    if arguments.config_from_metadata:
        arguments = filled(arguments)
    loras = read_loras(arguments.lora)     # first, because a prompt behind --lora is taken for its scale
    prompts = _prompts(arguments)
    names = read_styles(arguments.style)
    shared = {field: getattr(arguments, field, None) for field in (*_FIELDS, *_RECORDED)} | {'lora': loras}
    requests = [{'text': prompt, 'seed': seed, 'style': style, 'trigger': not arguments.no_trigger, **shared}
                for style in names for prompt in prompts for seed in arguments.seed]
    pictures = sum(parse_request(request).num_pictures for request in requests)     # all checked before any is drawn
    target = Target(arguments.output, pictures)
    done = []
    for entry in _draw_all(arguments, requests, target):
        done.append(entry)
        if not arguments.json:
            print(f'{entry["file"]}  (seed {entry["seed"]}, {entry["seconds"]:.1f} s)', flush=True)
    if arguments.json:
        print(document(done))
    return 0


def _prompts(arguments: argparse.Namespace) -> list[str]:
    if (arguments.prompt is None) == (arguments.prompt_file is None):
        raise InvalidPrompt('give a prompt, or --prompt-file, and not both: '
                            'modelscope-cartoon draw "a portrait painting of a woman" --style flat')
    if arguments.prompt is not None:
        return [arguments.prompt]
    return read_prompts(arguments.prompt_file)


def read_prompts(file: str) -> list[str]:
    """One a line; '-' is standard input."""
    try:
        text = sys.stdin.read() if file == '-' else Path(file).read_text('utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidPrompt(f'{file} can\'t be read as text ({error}).') from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise InvalidPrompt(f'{file} has no prompt in it; write one a line.')
    return prompts


def read_styles(given: list[str]) -> list[str | None]:
    if 'all' in given:
        return list(styles())
    return [check_style('style', name) for name in given] or [None]


def read_loras(given: list[list[str]]) -> list[tuple[str, float]]:
    """`--lora PATH [SCALE]`, each as the request has it."""
    loras = []
    for path, *scale in given:
        try:
            [number] = map(float, scale or ['1'])
        except ValueError:
            raise InvalidRequest(f'--lora {path} is followed by {" ".join(scale)!r}; accepted: nothing, or one number; '
                                 'the prompt goes in front of --lora.') from None
        loras.append((path, number))
    return loras


def _draw_all(arguments: argparse.Namespace, requests: list[dict], target: Target) -> Iterator[dict[str, Any]]:
    pipe, loaded = None, None
    for request in requests:
        model = model_of(arguments.model, request['style'])
        if model != loaded:
            pipe, loaded = load(model, arguments), model
        started = time.perf_counter()
        try:
            output = pipe({**request, 'output_type': target.format.name})
        except Interrupted as interruption:
            for output in interruption.outputs:
                yield from _save(output, request, target, model, started)
            raise
        yield from _save(output, request, target, model, started)


def _save(output: dict[str, Any], request: dict[str, Any], target: Target, model: str, started: float,
          ) -> Iterator[dict[str, Any]]:
    seconds = round((time.perf_counter() - started) / len(output['seeds']), 3)
    prompts, loras = output['revised_prompt'], output.get('loras')
    for i, (image, seed) in enumerate(zip(output['output_imgs'], output['seeds'])):
        yield {'file': str(write_file(target.next(request, seed), image)), 'model': model, 'style': request['style'],
               'seed': seed, 'seconds': seconds, 'preset': output['preset'],
               'revised_prompt': prompts if isinstance(prompts, str) else prompts[i], 'recipe': output['recipes'][i],
               **({'loras': loras[i] if isinstance(loras[0], list) else loras} if loras else {})}


def model_of(model: str | None, style: str | None) -> str:
    if model != FULL:
        return model or mini.NAME
    if style is None:
        raise InvalidRequest('--model full needs a --style, which says which of the full-size models.')
    if style not in styles():
        raise InvalidRequest(f'--model full draws each style with a model of its own, so {style!r} can\'t be mixed; '
                             'name one style, or draw with mini.')
    return style


def load(model: str, arguments: argparse.Namespace) -> Any:
    from modelscope_cartoon import load_pipeline

    tell_default(arguments.model)
    return load_pipeline(model, device=arguments.device or best_device(), dtype=arguments.dtype,
                         memory=arguments.memory, backend=arguments.backend, lora_dir=arguments.lora_dir)


def best_device() -> str:
    import torch

    return 'gpu' if torch.cuda.is_available() else 'cpu'


def slug(text: str) -> str:
    """The beginning of a prompt as a file's name has it; '' where it is of signs alone."""
    return re.sub(r'\W+', '-', text)[:40].strip('-').lower()


def tell_default(model: str | None) -> None:
    if model is None:
        print('drawing with the embedded mini model (128 px); --model full takes the full-size model of a style '
              '(768 px, 5 GB each)', file=sys.stderr)


class Target:
    """Where pictures go: the file of --output where it is one picture, else names of prompt, style and seed."""

    def __init__(self, output: str | None, pictures: int):
        path = Path(output or '.')
        self.file = path if path.suffix and not path.is_dir() else None
        self.folder = path.parent if self.file else path
        self.format: Format = format_of_suffix(path.suffix) if self.file else format_of_suffix('.png')
        self.pictures = pictures
        self._used: set[Path] = set()

    def next(self, request: dict[str, Any], seed: int) -> Path:
        if self.file and self.pictures == 1:
            return self.file
        stem = self.file.stem if self.file else slug(request['text'])
        parts = [stem or 'picture', (request['style'] or '').replace(':', '-'), str(seed)]
        name = '-'.join(part for part in parts if part)
        path = self.folder / f'{name}{self.file.suffix if self.file else ".png"}'
        for i in range(2, 10_000):
            if path not in self._used:
                break
            path = path.with_stem(f'{name}-{i}')
        self._used.add(path)
        return path
