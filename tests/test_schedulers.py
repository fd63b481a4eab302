"""Every row built by our code gives the numbers that diffusers publishes for its toy model.

The toy model, its start and the numbers are huggingface/diffusers', tests/schedulers/: `dummy_model` and
`dummy_sample_deter` of test_schedulers.py, and the sums and means of absolute values asserted in test_scheduler_*.py.
"""
from __future__ import annotations

import copy
import inspect
from functools import cache
from typing import Any, NamedTuple

import diffusers
import pytest
import torch

from modelscope_cartoon.errors import InvalidRequest, UnknownOption
from modelscope_cartoon.schedulers import ROWS, SchedulerRow, build, check_eta, check_steps, get_row

# `get_scheduler_config` of the test file of each class.
LINEAR = {'num_train_timesteps': 1000, 'beta_start': 0.0001, 'beta_end': 0.02, 'beta_schedule': 'linear'}
SIGMAS = {**LINEAR, 'num_train_timesteps': 1100}                              # euler, heun, kdpm2, lms
DDIM = {**LINEAR, 'clip_sample': True}
DDPM = {**DDIM, 'variance_type': 'fixed_small'}
UNIPC = {**LINEAR, 'solver_order': 2, 'solver_type': 'bh2', 'final_sigmas_type': 'sigma_min'}
DEIS = {**LINEAR, 'solver_order': 2}
SINGLE = {**LINEAR, 'thresholding': False, 'sample_max_value': 1.0, 'lambda_min_clipped': -float('inf'),
          'variance_type': None, 'final_sigmas_type': 'sigma_min'}
MULTI = {**SINGLE, 'lower_order_final': False, 'euler_at_final': False}
LCM = {**LINEAR, 'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear'}
SD21 = {'_class_name': 'DDIMScheduler', 'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear',
        'num_train_timesteps': 1000, 'prediction_type': 'v_prediction', 'steps_offset': 1, 'clip_sample': False,
        'set_alpha_to_one': False, 'timestep_spacing': 'leading'}

# What a row sets over any folder's config and the published test has otherwise, put back for that test alone.
# PNDM leaves the Runge-Kutta steps out, as Stable Diffusion's own configs do; the test takes them.
PNDM_BACK = {'skip_prk_steps': False}
# diffusers publishes the single-step solver as dpmsolver++ only, down to the smallest sigma.
SINGLE_BACK = {'algorithm_type': 'dpmsolver++', 'final_sigmas_type': 'sigma_min', 'lower_order_final': False}
# ... and the multistep solver as dpmsolver++ only; the SDE rows themselves stand in test_k_diffusion.py.
MULTI_BACK = {'algorithm_type': 'dpmsolver++'}


class Published(NamedTuple):
    label: str
    config: dict[str, Any]
    sum: float | None          # None: that test asserts the mean alone
    mean: float
    v_prediction: bool = False
    steps: int = 10
    back: dict[str, Any] = {}  # noqa: RUF012


PUBLISHED = [
    Published('Euler a', SIGMAS, 152.3192, 0.1983),                           # test_scheduler_euler_ancestral.py
    Published('Euler a', SIGMAS, 108.4439, 0.1412, v_prediction=True),
    Published('Euler', SIGMAS, 10.0807, 0.0131),                              # test_scheduler_euler.py
    Published('Euler', SIGMAS, 0.0002, 2.2676e-06, v_prediction=True),
    Published('Heun', SIGMAS, 0.1233, 0.0002),                                # test_scheduler_heun.py
    Published('Heun', SIGMAS, 4.6934e-07, 6.1112e-10, v_prediction=True),
    Published('DPM2', SIGMAS, 20.4125, 0.0266),                               # test_scheduler_kdpm2_discrete.py
    Published('DPM2', SIGMAS, 4.6934e-07, 6.1112e-10, v_prediction=True),
    Published('DPM2 a', SIGMAS, 13979.9433, 18.2030),                         # test_scheduler_kdpm2_ancestral.py
    Published('DPM2 a', SIGMAS, 331.8133, 0.4320, v_prediction=True),
    Published('LMS', SIGMAS, 1006.388, 1.31),                                 # test_scheduler_lms.py
    Published('LMS', SIGMAS, 0.0017, 2.2676e-06, v_prediction=True),
    Published('DDIM', DDIM, 172.0067, 0.223967),                              # test_scheduler_ddim.py
    Published('DDIM', DDIM, 52.5302, 0.0684, v_prediction=True),
    Published('DDPM', DDPM, 258.9606, 0.3372, steps=1000),                    # test_scheduler_ddpm.py
    Published('DDPM', DDPM, 202.0296, 0.2631, v_prediction=True, steps=1000),
    Published('PNDM', LINEAR, 198.1318, 0.2580, back=PNDM_BACK),              # test_scheduler_pndm.py
    Published('PNDM', LINEAR, 67.3986, 0.0878, v_prediction=True, back=PNDM_BACK),
    Published('UniPC', UNIPC, None, 0.2464),                                  # test_scheduler_unipc.py
    Published('UniPC', UNIPC, None, 0.1014, v_prediction=True),
    Published('DEIS', DEIS, None, 0.23916),                                   # test_scheduler_deis.py
    Published('DEIS', DEIS, None, 0.091, v_prediction=True),
    Published('DPM++ 2M', MULTI, None, 0.3301),                               # test_scheduler_dpm_multi.py
    Published('DPM++ 2M', MULTI, None, 0.2251, v_prediction=True),
    Published('DPM++ 2M Karras', MULTI, None, 0.2096, v_prediction=True),
    Published('DPM++ 2M SDE', MULTI, None, 0.3301, back=MULTI_BACK),
    Published('DPM++ 2M SDE Karras', MULTI, None, 0.2096, v_prediction=True, back=MULTI_BACK),
    Published('DPM++ 2S', SINGLE, None, 0.2791, back=SINGLE_BACK),            # test_scheduler_dpm_single.py
    Published('DPM++ 2S', SINGLE, None, 0.1453, v_prediction=True, back=SINGLE_BACK),
    Published('DPM++ SDE', SINGLE, None, 0.2791, back=SINGLE_BACK),
    Published('DPM++ SDE Karras', SINGLE, None, 0.2248, back=SINGLE_BACK),
    Published('DPM++ SDE Karras', SINGLE, None, 0.0649, v_prediction=True, back=SINGLE_BACK),
    Published('LCM', LCM, 18.7097, 0.0244, steps=1),                          # test_scheduler_lcm.py
    Published('LCM', LCM, 197.7616, 0.2575),
]


def toy_loop(scheduler: Any, steps: int) -> torch.Tensor:
    """`full_loop` of diffusers' scheduler tests."""
    count = 4 * 3 * 8 * 8
    generator = torch.Generator().manual_seed(0)
    noise = {'generator': generator} if 'generator' in inspect.signature(scheduler.step).parameters else {}
    scheduler.set_timesteps(steps)
    x = (torch.arange(count).reshape(3, 8, 8, 4) / count).permute(3, 0, 1, 2) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.scale_model_input(x, t)
        x = scheduler.step(x * t / (t + 1), t, x, **noise).prev_sample
    return x.abs()


@pytest.mark.parametrize('case', PUBLISHED, ids=lambda c: f'{c.label}{" v" * c.v_prediction} {c.steps}')
def test_a_row_gives_the_published_numbers(case: Published):
    prediction = 'v_prediction' if case.v_prediction else 'epsilon'
    scheduler = build(case.label, {**case.config, 'prediction_type': prediction})
    if case.back:
        scheduler = type(scheduler).from_config(scheduler.config, **case.back)
    x = toy_loop(scheduler, case.steps)
    assert case.sum is None or x.sum().item() == pytest.approx(case.sum, abs=1e-2)
    assert x.mean().item() == pytest.approx(case.mean, abs=1e-3)


def test_every_row_has_a_published_number():
    assert {case.label for case in PUBLISHED} == {row.label for row in ROWS}


@cache
def on_sd21(label: str) -> Any:
    """Built once (the DPM2 classes take a second), on a folder that says the opposite of the row about Karras."""
    return build(label, {**SD21, 'use_karras_sigmas': not label.endswith(' Karras')})


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row.label)
def test_what_a_row_does_not_name_stays_the_folders(row: SchedulerRow):
    known = inspect.signature(getattr(diffusers, row.diffusers_class).__init__).parameters
    kept = {key: value for key, value in SD21.items() if key in known}
    assert {'prediction_type', 'beta_start', 'beta_end', 'beta_schedule'} <= set(kept)
    assert {key: on_sd21(row.label).config[key] for key in kept} == kept


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row.label)
def test_only_karras_rows_use_karras_sigmas_whatever_the_folder_says(row: SchedulerRow):
    if 'use_karras_sigmas' in inspect.signature(getattr(diffusers, row.diffusers_class).__init__).parameters:
        assert on_sd21(row.label).config.use_karras_sigmas == row.label.endswith(' Karras')
    else:
        assert not row.label.endswith(' Karras')


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row.label)
def test_a_row_is_found_by_label_and_alias_in_any_case(row: SchedulerRow):
    for name in (row.label, *row.aliases):
        assert get_row(name) is get_row(name.upper()) is get_row(f' {name.lower()} ') is row


@pytest.mark.parametrize('name', sorted({row.diffusers_class for row in ROWS}))
def test_a_diffusers_class_name_finds_the_first_row_of_that_class(name: str):
    first = next(row for row in ROWS if row.diffusers_class == name)
    assert get_row(name) is get_row(name.lower()) is get_row(name.removesuffix('Scheduler').upper()) is first


def test_no_name_means_two_rows():
    labels = [name.casefold() for row in ROWS for name in (row.label, *row.aliases)]
    assert len(labels) == len(set(labels))


@pytest.mark.parametrize(('name', 'nearest'), [('Euler b', 'Euler'), ('dpm++ 2m karas', 'DPM++ 2M Karras'),
                                               ('unipcc', 'UniPC'), ('DIM', 'DDIM')])
def test_an_unknown_name_is_refused_with_the_nearest(name: str, nearest: str):
    with pytest.raises(UnknownOption) as caught:
        get_row(name)
    assert repr(name) in str(caught.value) and f"did you mean '{nearest}" in str(caught.value)
    assert all(row.label in str(caught.value) for row in ROWS)


@pytest.mark.parametrize('name', [None, 7, '', b'Euler', ['Euler']])
def test_what_is_no_name_is_refused(name: object):
    with pytest.raises(UnknownOption):
        get_row(name)


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row.label)
def test_a_row_works_from_its_smallest_number_of_steps(row: SchedulerRow):
    scheduler = copy.deepcopy(on_sd21(row.label))
    check_steps(scheduler, row.min_steps)
    assert torch.isfinite(toy_loop(scheduler, row.min_steps)).all()


@pytest.mark.parametrize(('label', 'given', 'least'), [('PNDM', 3, 4), ('PNDM', 1, 4), ('UniPC', 1, 2)])
def test_too_few_steps_are_refused_in_words(label: str, given: int, least: int):
    with pytest.raises(InvalidRequest) as caught:
        check_steps(build(label, SD21), given)
    assert f'num_inference_steps is {given}; the scheduler {label} takes {least} to 1000; nearest: {least}.' == str(
        caught.value)


def test_more_steps_than_were_trained_are_refused():
    with pytest.raises(InvalidRequest, match='takes 1 to 50; nearest: 50'):
        check_steps(build('DDIM', {**SD21, 'num_train_timesteps': 50}), 51)


def test_a_scheduler_without_a_row_is_checked_by_its_class_name():
    with pytest.raises(InvalidRequest, match='FlowMatch.* takes 1 to 1000'):
        check_steps(diffusers.FlowMatchEulerDiscreteScheduler(), 1001)


@pytest.mark.parametrize('row', [row for row in ROWS if row.label != 'DDIM'], ids=lambda row: row.label)
def test_eta_is_refused_where_the_scheduler_has_none(row: SchedulerRow):
    scheduler = copy.deepcopy(on_sd21(row.label))
    check_eta(scheduler, 0.0)
    with pytest.raises(InvalidRequest, match=f'eta is 0.5, and the scheduler {row.diffusers_class} has no eta'):
        check_eta(scheduler, 0.5)


def test_ddim_takes_an_eta():
    check_eta(build('DDIM', SD21), 1.0)
    check_eta(diffusers.DDIMScheduler(), 1.0)
    with pytest.raises(InvalidRequest):
        check_eta(diffusers.DDPMScheduler(), 0.1)


@pytest.mark.parametrize('label', ['DDIM', 'DDPM'])
def test_latents_are_not_clipped_where_the_folders_config_says_nothing_of_it(label):
    config = diffusers.PNDMScheduler(skip_prk_steps=True).config
    assert build(label, config).config.clip_sample is False
    assert build(label, {**config, 'clip_sample': True}).config.clip_sample is True
