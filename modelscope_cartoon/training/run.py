"""From pictures to a model folder: the steps of a training run, in order."""
from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from modelscope_cartoon.errors import InvalidRequest, UnknownOption
from modelscope_cartoon.log import logger
from modelscope_cartoon.names import look_up
from modelscope_cartoon.training.base import Base, training_dtype
from modelscope_cartoon.training.checkpoint import Checkpoint, last_checkpoint
from modelscope_cartoon.training.loop import Loop
from modelscope_cartoon.training.material import prepare
from modelscope_cartoon.training.output import MANIFEST, WORK, base_digests, write_output
from modelscope_cartoon.training.pictures import Example, read_examples
from modelscope_cartoon.training.plan import make_plan
from modelscope_cartoon.training.prior import prepare_prior
from modelscope_cartoon.training.recipe import Recipe
from modelscope_cartoon.training.sheet import Samples, default_prompts

_MIXED = {torch.float32: 'no', torch.bfloat16: 'bf16', torch.float16: 'fp16'}
# What may differ when a run is resumed: it changes no number of the result.
_FREE = ('name', 'checkpoint_every', 'sample_every', 'sample_prompts', 'trackers')


def train(pictures: Any, output: str | os.PathLike, resume: bool = False, device: str = 'gpu', **settings: Any) -> Path:
    """Trains by Recipe.of(**settings) and returns `output`, which pipeline() loads.

    pictures: a folder, an MsDataset, or a list (modelscope_cartoon.training.pictures). device: 'gpu' (the CPU where
    there is none) or 'cpu'. resume: goes on from the last checkpoint in `output`, where there is one.
    """
    output, accelerator, base, examples = _prepared(pictures, Path(output), device, settings)
    about = _about(base, examples)
    start = _start(output, resume, about)
    with accelerator.main_process_first():
        prior = prepare_prior(base, examples, output / WORK / 'prior.safetensors')
    loop = Loop(accelerator, base, prepare(base, examples, prior), output / WORK / 'checkpoints', about)
    if start is not None:
        loop.restore(start)
    _log_settings(accelerator, base.recipe)
    loop.run(_samples(base, examples, output).draw)
    if accelerator.is_main_process:
        with loop.averaged():
            write_output(output, base, examples, loop.history)
    accelerator.end_training()
    return output


def plan(pictures: Any, output: str | os.PathLike, device: str = 'gpu', **settings: Any) -> dict[str, Any]:
    """What train() with the same arguments would take: steps, memory, time (modelscope_cartoon.training.plan)."""
    output, accelerator, base, examples = _prepared(pictures, Path(output), device, {**settings, 'trackers': ()})
    return make_plan(accelerator, base, examples, output / WORK)


def _prepared(pictures: Any, output: Path, device: str, settings: dict[str, Any],
              ) -> tuple[Path, Accelerator, Base, list[Example]]:
    recipe = Recipe.of(**settings)
    accelerator = _accelerator(recipe, device, output / WORK / 'logs')
    if not accelerator.is_main_process:
        logger.setLevel(logging.ERROR)     # one voice is enough
    base = Base(recipe, accelerator.device)
    return output, accelerator, base, read_examples(pictures, base.recipe, base.resolution)


def _accelerator(recipe: Recipe, device: str, logs: Path) -> Accelerator:
    if device not in ('gpu', 'cpu'):
        raise InvalidRequest(f"device is {device!r}; accepted: 'gpu', 'cpu'; to choose among several GPUs: "
                             'CUDA_VISIBLE_DEVICES, or accelerate launch.')
    for name in recipe.trackers:
        look_up('tracker', name, {known: known for known in LOGGER_TYPE_TO_CLASS})
        if name not in [str(getattr(one, 'value', one)) for one in get_available_trackers()]:
            raise UnknownOption(f'the tracker {name} needs its package, which is not installed: pip install {name}.')
    AcceleratorState._reset_state()     # it would keep the precision of the run before in this process
    if PartialState._shared_state and PartialState().num_processes == 1:
        PartialState._reset_state()     # and its device
    dtype = training_dtype(recipe.precision, PartialState(cpu=device == 'cpu').device)
    return Accelerator(cpu=device == 'cpu', mixed_precision=_MIXED[dtype], log_with=list(recipe.trackers) or None,
                       project_dir=logs if recipe.trackers else None)


def _about(base: Base, examples: Sequence[Example]) -> dict[str, Any]:
    digest = hashlib.sha256(repr([(e.name, e.sha256, e.caption) for e in examples]).encode()).hexdigest()
    return {'recipe': base.recipe.settings(), 'pictures': digest, 'base': base_digests(base)}


def _start(output: Path, resume: bool, about: dict[str, Any]) -> Checkpoint | None:
    """The checkpoint to go on from, None at the beginning. InvalidRequest where it belongs to another run."""
    checkpoint = last_checkpoint(output / WORK / 'checkpoints')
    if not resume:
        if checkpoint is not None or (output / MANIFEST).exists():
            raise InvalidRequest(f'{output} holds a run already; --resume (resume=True) goes on with it, or give '
                                 'another output.')
        return None
    if checkpoint is None:
        logger.warning('%s has no checkpoint to resume from; starting at the beginning.', output)
        return None
    for what in ('base', 'pictures'):
        if checkpoint.about[what] != about[what]:
            raise InvalidRequest(f'the {what} changed since {output} was begun; the same result could not be reached. '
                                 'Give another output.')
    then, now = checkpoint.about['recipe'], about['recipe']
    changed = [f'{key} (was {then.get(key)!r})' for key in now if key not in _FREE and now[key] != then.get(key)]
    if changed:
        raise InvalidRequest(f'{output} was begun with other settings: {", ".join(changed)}; give those, or another '
                             'output.')
    logger.warning('going on after step %d.', checkpoint.step)
    return checkpoint


def _samples(base: Base, examples: Sequence[Example], output: Path) -> Samples:
    recipe, captions = base.recipe, list(dict.fromkeys(example.caption for example in examples))
    prompts = recipe.sample_prompts or default_prompts(captions, [recipe.without_trigger(c) for c in captions])
    return Samples(base, prompts, output / 'samples')


def _log_settings(accelerator: Accelerator, recipe: Recipe) -> None:
    if recipe.trackers:
        simple = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in recipe.settings().items()}
        accelerator.init_trackers('modelscope_cartoon', simple)
