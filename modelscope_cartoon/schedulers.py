"""The samplers, one row each: the label that A1111's users know, aliases, diffusers' class and its options.

Adding a row adds a sampler to pipeline(), to the command line and to the docs. Options stand over the model
folder's own scheduler config; what they don't name (betas, prediction type, spacing) stays the folder's.
"""
from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from modelscope_cartoon.errors import InvalidRequest
from modelscope_cartoon.names import look_up


@dataclass(frozen=True)
class SchedulerRow:
    label: str
    diffusers_class: str
    options: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    min_steps: int = 1


# Where a folder's config is silent (a PNDM's is): clipping to -1..1 is right for pixels and ruins latents.
_LATENTS = {'clip_sample': False}
_PLAIN = {'use_karras_sigmas': False}
_KARRAS = {'use_karras_sigmas': True}
_MULTISTEP = {'algorithm_type': 'dpmsolver++', 'solver_order': 2, 'solver_type': 'midpoint'}
_SDE_MULTISTEP = {**_MULTISTEP, 'algorithm_type': 'sde-dpmsolver++'}
_SINGLESTEP_SDE = {'algorithm_type': 'sde-dpmsolver++', 'solver_order': 2, 'solver_type': 'midpoint',
                   'final_sigmas_type': 'zero', 'lower_order_final': True}

# No DPM++ 3M SDE: diffusers 0.42's third-order SDE step has one sign wrong (scheduling_dpmsolver_multistep.py, the
# 0.5 of D2) and ends far from k-diffusion's sample_dpmpp_3m_sde.
ROWS: tuple[SchedulerRow, ...] = (
    SchedulerRow('Euler a', 'EulerAncestralDiscreteScheduler', aliases=('euler_a', 'k_euler_a', 'euler ancestral')),
    SchedulerRow('Euler', 'EulerDiscreteScheduler', _PLAIN, ('k_euler',)),
    SchedulerRow('Heun', 'HeunDiscreteScheduler', _PLAIN, ('k_heun',)),
    SchedulerRow('DPM2', 'KDPM2DiscreteScheduler', _PLAIN, ('k_dpm_2',)),
    SchedulerRow('DPM2 a', 'KDPM2AncestralDiscreteScheduler', _PLAIN, ('k_dpm_2_a',)),
    SchedulerRow('LMS', 'LMSDiscreteScheduler', _PLAIN, ('k_lms',)),
    SchedulerRow('DDIM', 'DDIMScheduler'),
    SchedulerRow('DDPM', 'DDPMScheduler'),
    SchedulerRow('PNDM', 'PNDMScheduler', {'skip_prk_steps': True}, ('plms',), min_steps=4),
    SchedulerRow('UniPC', 'UniPCMultistepScheduler', _PLAIN, ('unipc_multistep',), min_steps=2),
    SchedulerRow('DEIS', 'DEISMultistepScheduler', _PLAIN),
    SchedulerRow('DPM++ 2M', 'DPMSolverMultistepScheduler', {**_MULTISTEP, **_PLAIN}, ('dpmpp_2m', 'dpm++2m')),
    SchedulerRow('DPM++ 2M Karras', 'DPMSolverMultistepScheduler', {**_MULTISTEP, **_KARRAS}, ('dpmpp_2m_karras',)),
    SchedulerRow('DPM++ 2M SDE', 'DPMSolverMultistepScheduler', {**_SDE_MULTISTEP, **_PLAIN}, ('dpmpp_2m_sde',)),
    SchedulerRow('DPM++ 2M SDE Karras', 'DPMSolverMultistepScheduler', {**_SDE_MULTISTEP, **_KARRAS},
                 ('dpmpp_2m_sde_karras',)),
    SchedulerRow('DPM++ 2S', 'DPMSolverSinglestepScheduler',
                 {**_SINGLESTEP_SDE, 'algorithm_type': 'dpmsolver++', **_PLAIN}, ('dpmpp_2s',)),
    SchedulerRow('DPM++ SDE', 'DPMSolverSinglestepScheduler', {**_SINGLESTEP_SDE, **_PLAIN}, ('dpmpp_sde',)),
    SchedulerRow('DPM++ SDE Karras', 'DPMSolverSinglestepScheduler', {**_SINGLESTEP_SDE, **_KARRAS},
                 ('dpmpp_sde_karras',)),
    SchedulerRow('LCM', 'LCMScheduler'),
)


@cache
def _by_name() -> dict[str, SchedulerRow]:
    names: dict[str, SchedulerRow] = {row.label: row for row in ROWS}
    for row in ROWS:
        for name in (*row.aliases, row.diffusers_class, row.diffusers_class.removesuffix('Scheduler')):
            names.setdefault(name, row)
    return names


def get_row(name: object) -> SchedulerRow:
    """The row for an A1111 label, an alias or a diffusers class name (its first row), any case."""
    try:
        return look_up('scheduler', name, _by_name())
    except InvalidRequest:
        return look_up('scheduler', name, {row.label: row for row in ROWS})


def build(name: str, config: Mapping[str, Any]) -> Any:
    """A diffusers scheduler for the row `name` on a model's own scheduler `config`."""
    import diffusers

    row = get_row(name)
    scheduler_class = getattr(diffusers, row.diffusers_class)
    return scheduler_class.from_config({**_LATENTS, **config}, **row.options)


def check_steps(scheduler: Any, num_inference_steps: int) -> None:
    """InvalidRequest where `scheduler` needs more steps than asked for, or has no more to give."""
    rows = [row for row in ROWS if row.diffusers_class == type(scheduler).__name__]
    least = max((row.min_steps for row in rows), default=1)
    most = scheduler.config.get('num_train_timesteps', 1000)
    if not least <= num_inference_steps <= most:
        name = rows[0].label if rows else type(scheduler).__name__
        raise InvalidRequest(f'num_inference_steps is {num_inference_steps}; the scheduler {name} takes '
                             f'{least} to {most}; nearest: {min(max(num_inference_steps, least), most)}.')


def check_eta(scheduler: Any, eta: float) -> None:
    """InvalidRequest where an eta is given and `scheduler` has none (only DDIM's step knows it)."""
    if eta and 'eta' not in inspect.signature(scheduler.step).parameters:
        raise InvalidRequest(f'eta is {eta}, and the scheduler {type(scheduler).__name__} has no eta; '
                             "leave eta out, or use scheduler='DDIM'.")
