"""What a run will take, told before it starts: measured on a few steps with the real networks, then multiplied."""
from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import psutil
import torch
from accelerate import Accelerator

from modelscope_cartoon.memory import gib
from modelscope_cartoon.training.base import Base
from modelscope_cartoon.training.checkpoint import KEPT
from modelscope_cartoon.training.loop import Loop
from modelscope_cartoon.training.material import Material, encode_texts
from modelscope_cartoon.training.pictures import Example

_TRIED = 3      # steps, after one that is not counted


def make_plan(accelerator: Accelerator, base: Base, examples: Sequence[Example], folder: Any) -> dict[str, Any]:
    """Numbers by name; nothing is written. Memory is the most that loading and the tried steps used."""
    recipe = base.recipe
    loop = Loop(accelerator, base, _stand_in(base, examples), folder, {})
    seconds = _seconds_per_step(loop)
    trained = sum(p.numel() for p in loop.trained.values())
    drawn = 0 if not recipe.prior_share or recipe.prior_pictures else recipe.prior_count
    samples = 5 * (recipe.steps // recipe.sample_every + 1) if recipe.sample_every else 0
    forward = seconds / recipe.batch_size / 3      # of one picture; backward takes twice as long as forward
    drawing = (drawn + samples) * recipe.sample_steps * 2 * forward
    return {'pictures': len(examples), 'class_pictures': drawn, 'resolution': base.resolution,
            'steps': recipe.steps, 'batch_size': recipe.batch_size, 'method': recipe.method,
            'times_each_picture': round(recipe.steps * (recipe.batch_size - recipe.prior_in_batch) / len(examples)),
            'trained_numbers': trained, 'weights_bytes': trained * 2 + _untrained(base) * 2,
            'disk_bytes': trained * 4 * 3 * (KEPT + 1) + trained * 2,      # weights and AdamW's two moments
            'memory_bytes': _peak(base.device), 'device': str(base.device), 'precision': str(base.precision),
            'seconds_per_step': round(seconds, 4), 'training_seconds': round(seconds * recipe.steps),
            'drawing_seconds': round(drawing)}


def _untrained(base: Base) -> int:
    if base.recipe.method == 'lora':
        return 0
    parts = (base.pipe.vae, base.pipe.text_encoder)
    return sum(p.numel() for part in parts for p in part.parameters() if not p.requires_grad)


def _stand_in(base: Base, examples: Sequence[Example]) -> Material:
    """Noise instead of encoded pictures: it costs the same to train on."""
    side = base.resolution // base.pipe.vae_scale_factor
    captions = [example.caption for example in examples] + ['a picture']
    texts = {text: row for row, text in enumerate(dict.fromkeys(['', *captions]))}
    latents = [torch.zeros(1, base.pipe.unet.config.in_channels, side, side) for _ in captions]
    return Material([e.name for e in examples] + ['class picture'], captions, latents, len(examples), texts,
                    *encode_texts(base, list(texts)))


def _seconds_per_step(loop: Loop) -> float:
    steps = []
    for _ in range(1 + _TRIED):
        started = time.perf_counter()
        loop._step(False)
        if loop.base.device.type == 'cuda':
            torch.cuda.synchronize()
        steps.append(time.perf_counter() - started)
        loop.step += 1
    return sorted(steps[1:])[_TRIED // 2]


def _peak(device: torch.device) -> int:
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:     # Windows
        return psutil.Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def told(plan: dict[str, Any]) -> str:
    """The plan in words."""
    minutes = [f'{int(plan[key]) // 60}:{int(plan[key]) % 60:02}' for key in ('training_seconds', 'drawing_seconds')]
    mib = 2**20
    return '\n'.join((
        f'pictures   {plan["pictures"]}, and {plan["class_pictures"]} class pictures that the base draws first',
        f'training   {plan["method"]}, {plan["steps"]} steps of {plan["batch_size"]} at {plan["resolution"]} px: each '
        f'picture about {plan["times_each_picture"]} times',
        f'result     {plan["trained_numbers"]:,} trained numbers, {plan["weights_bytes"] / mib:.1f} MiB; '
        f'{plan["disk_bytes"] / mib:.0f} MiB of disk while it trains',
        f'memory     {gib(plan["memory_bytes"])} on {plan["device"]} in {plan["precision"].removeprefix("torch.")}',
        f'time       {plan["seconds_per_step"]:.3g} s a step, {minutes[0]} in all; about {minutes[1]} more for class '
        'pictures and samples'))
