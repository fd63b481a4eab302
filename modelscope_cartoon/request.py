"""GenerationRequest: what to draw, and its only parser and validator.

    parse_request('a cat')
    parse_request({'text': 'a cat', 'seed': 7, 'num_images_per_prompt': 2})     # seeds 7 and 8
    parse_request({'text': 'a cat', 'height': 512}, height=768)                 # call keywords override the dict
    parse_request({'text': ['a cat', 'a dog'], 'seed': [7, 7]})                 # several prompts, one request
"""
from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from modelscope_cartoon import checks
from modelscope_cartoon.checks import SEED_LIMIT
from modelscope_cartoon.errors import InvalidPrompt, InvalidRequest, UnknownOption
from modelscope_cartoon.formats import get_format
from modelscope_cartoon.lora_choice import LoraChoice, check_lora, check_style
from modelscope_cartoon.metadata import KINDS, check_kinds
from modelscope_cartoon.names import refuse_unknown
from modelscope_cartoon.presets import EXACT, get_preset
from modelscope_cartoon.schedulers import get_row

MAX_PICTURES = 1000
PIXEL_BUDGET = 64 * 2**20


@dataclass(frozen=True)
class GenerationRequest:
    """Everything that decides a picture. None means: the model's own default, or (seed) none was needed.

    text, negative_prompt: as given, one entry a prompt. seed: one entry a picture, prompt by prompt.
    style: a name, or a mix such as 'flat:0.6+watercolor:0.4'. lora: (path or name, scale) of each.
    preset: its fields stand where none is given. guidance_interval: guidance is on where start <= step / steps < stop.
    cache_interval: every n-th UNet call is whole, the others reuse its deep features (modelscope_cartoon.deepcache).
    metadata: what a file (output_type png, jpeg, webp, base64) holds besides its pixels. label: words in its corner.
    """
    text: tuple[str, ...]
    negative_prompt: tuple[str, ...]
    seed: tuple[int, ...] | None
    style: str | None = None
    lora: tuple[tuple[str, float], ...] = ()
    trigger: bool = True
    num_images_per_prompt: int = 1
    height: int | None = None
    width: int | None = None
    preset: str = EXACT
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float = 0.0
    clip_skip: int | None = None
    eta: float = 0.0
    scheduler: str | None = None
    cache_interval: int = 1
    generator: Any = None
    latents: Any = None
    output_type: str = 'bgr'
    metadata: tuple[str, ...] = KINDS
    label: str | None = None
    callback_on_step_end: Callable | None = None

    @property
    def num_pictures(self) -> int:
        return len(self.text) * self.num_images_per_prompt

    def settings(self) -> tuple:
        """What pictures must share to be drawn in one batch; their LoRAs (Picture.loras) too."""
        return (self.height, self.width, self.num_inference_steps, self.guidance_scale, self.guidance_rescale,
                self.guidance_interval, self.clip_skip, self.eta, self.scheduler, self.cache_interval)

    @property
    def draws_alone(self) -> bool:
        """True where a tensor or a callback of the caller's belongs to this request only."""
        return any(x is not None for x in (self.generator, self.latents, self.callback_on_step_end))


class Picture(NamedTuple):
    """One picture to draw: its prompts as they are really used, its seed (None: the request's own generator), and the
    LoRAs of its request, prompt, style and model.
    """
    prompt: str
    negative_prompt: str
    seed: int | None
    loras: tuple[LoraChoice, ...] = ()


def parse_request(data: Any, defaults: Mapping[str, Any] | None = None, **overrides: Any) -> GenerationRequest:
    """A checked request from a prompt, a list of prompts or a dict; InvalidRequest says what can't be drawn.

    defaults: the model's own; a preset's fields, and what is given, stand over them.
    """
    given = {**_as_dict(data), **overrides}
    for wrong, right in RENAMED.items():
        if wrong in given:
            raise UnknownOption(f'unknown key {wrong!r} (did you mean {right!r}?).')
    refuse_unknown('key', given, FIELD_NAMES)
    given = {key: value for key, value in given.items() if value is not None or key == 'text'}
    given = _with_callback(given)
    given = {**(defaults or {}), **get_preset(given.get('preset', EXACT)).fields, **given}
    values = {key: check(key, given[key]) for key, check in _CHECKS.items() if key in given}
    return _assemble(values)


def _as_dict(data: Any) -> dict[str, Any]:
    if isinstance(data, Mapping):
        if 'text' not in data:
            raise InvalidPrompt(f"the input has no 'text'; given keys: {', '.join(map(str, data)) or 'none'}.")
        return dict(data)
    return {'text': data}


def _assemble(values: dict[str, Any]) -> GenerationRequest:
    prompts = len(values['text'])
    seeds = values.pop('seed', None)
    count = _images_per_prompt(values.get('num_images_per_prompt'), prompts, seeds)
    drawn_by_generator = seeds is None and 'generator' in values
    request = GenerationRequest(**{
        **values,
        'negative_prompt': _negatives(values.get('negative_prompt', ('',)), prompts),
        'num_images_per_prompt': count,
        'seed': None if drawn_by_generator else _seeds(seeds, prompts * count)})
    _check_budget(request)
    _check_generator(request)
    _check_interval(request)
    return request


def _images_per_prompt(count: int | None, prompts: int, seeds: int | tuple | None) -> int:
    """As given; else as many as a list of seeds has for each prompt; else 1."""
    if not isinstance(seeds, tuple):
        return count or 1
    wanted = prompts * (count or max(1, len(seeds) // prompts))
    if len(seeds) != wanted:
        raise InvalidRequest(f'seed has {len(seeds)} entries for {wanted} pictures; '
                             'give one seed, or one for each picture.')
    return wanted // prompts


def _negatives(negative: tuple[str, ...], prompts: int) -> tuple[str, ...]:
    negative = negative * prompts if len(negative) == 1 else negative
    if len(negative) != prompts:
        raise InvalidRequest(f'negative_prompt has {len(negative)} entries for {prompts} prompts; '
                             'give one string, or one for each prompt.')
    return negative


def _seeds(seeds: int | tuple | None, pictures: int) -> tuple[int, ...]:
    if isinstance(seeds, tuple):
        return seeds
    first = secrets.randbelow(SEED_LIMIT) if seeds is None else seeds
    return tuple((first + i) % SEED_LIMIT for i in range(pictures))


def _check_budget(request: GenerationRequest) -> None:
    pixels = (request.height or 512) * (request.width or 512) * request.num_pictures
    if pixels > PIXEL_BUDGET or request.num_pictures > MAX_PICTURES:
        raise InvalidRequest(f'{request.num_pictures} pictures of this size are {pixels:,} pixels in one request; '
                             f'at most {PIXEL_BUDGET:,} pixels and {MAX_PICTURES} pictures are accepted; '
                             'split it into several requests.')


def _check_generator(request: GenerationRequest) -> None:
    generator = request.generator
    if generator is None:
        return
    many = list(generator) if isinstance(generator, (list, tuple)) else [generator]
    if not all(hasattr(g, 'initial_seed') and hasattr(g, 'get_state') for g in many):
        raise InvalidRequest(f'generator is {checks.shown(generator)}; accepted: a torch.Generator, or a list of them, '
                             'one for each picture.')
    if isinstance(generator, (list, tuple)) and len(many) != request.num_pictures:
        raise InvalidRequest(f'generator has {len(many)} entries for {request.num_pictures} pictures; '
                             'give one, or one for each picture.')


def _check_interval(request: GenerationRequest) -> None:
    steps, (start, stop) = request.num_inference_steps, request.guidance_interval or (0, 1)
    if not any(start <= step / steps < stop for step in range(steps)):
        raise InvalidRequest(f'guidance_interval is {request.guidance_interval}, and none of {steps} steps is in it; '
                             'give a wider one, or guidance_scale=1 for no guidance at all.')


def _with_callback(given: dict[str, Any]) -> dict[str, Any]:
    """The host's old `callback(step, timestep, latents)` every `callback_steps` steps, as callback_on_step_end."""
    given = dict(given)
    every = checks.whole('callback_steps', given.pop('callback_steps', 1), 1, 1000)
    callback = given.pop('callback', None)
    if callback is None:
        return given
    if 'callback_on_step_end' in given:
        raise InvalidRequest('both callback and callback_on_step_end are given; give callback_on_step_end only.')
    checks.function('callback', callback)

    def on_step_end(pipe: Any, call: int, timestep: Any, tensors: dict) -> dict:
        # As in diffusers' own loop: once a step, though Heun and DPM2 call twice; not while PNDM warms up.
        order, calls = pipe.scheduler.order, pipe.num_timesteps
        whole_step = call >= calls - pipe.scheduler.num_inference_steps * order and (call + 1) % order == 0
        if (whole_step or call == calls - 1) and call // order % every == 0:
            callback(call // order, timestep, tensors['latents'])
        return {}
    return {**given, 'callback_on_step_end': on_step_end}


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    'text': checks.prompts,
    'negative_prompt': checks.prompts,
    'style': check_style,
    'lora': check_lora,
    'trigger': checks.truth,
    'seed': checks.seed,
    'num_images_per_prompt': lambda key, value: checks.whole(key, value, 1, MAX_PICTURES),
    'height': checks.size,
    'width': checks.size,
    'preset': lambda key, value: get_preset(value).name,
    'num_inference_steps': lambda key, value: checks.whole(key, value, 1, 1000),
    'guidance_scale': lambda key, value: checks.number(key, value, 0, 50),
    'guidance_rescale': lambda key, value: checks.number(key, value, 0, 1),
    'guidance_interval': checks.interval,
    'clip_skip': lambda key, value: checks.whole(key, value, 0, 12) or None,
    'eta': lambda key, value: checks.number(key, value, 0, 1),
    'scheduler': lambda key, value: get_row(value).label,
    'cache_interval': lambda key, value: checks.whole(key, value, 1, 1000),
    'generator': lambda key, value: value,
    'latents': lambda key, value: value,
    'output_type': lambda key, value: get_format(value).name,
    'metadata': check_kinds,
    'label': checks.words,
    'callback_on_step_end': checks.function,
}
FIELD_NAMES: tuple[str, ...] = (*_CHECKS, 'callback', 'callback_steps')
RENAMED = {'prompt': 'text', 'steps': 'num_inference_steps', 'cfg_scale': 'guidance_scale', 'sampler': 'scheduler',
            'guidance': 'guidance_scale', 'n': 'num_images_per_prompt', 'negative': 'negative_prompt'}
