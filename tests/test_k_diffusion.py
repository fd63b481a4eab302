"""Our rows against k-diffusion 0.1.1, which A1111's samplers are: same denoiser, same noise, ten steps.

crowsonkb/k-diffusion works on x = x0 + sigma * noise, diffusers' DPM solvers on x / sqrt(1 + sigma^2).
"""
from __future__ import annotations

import importlib.util
import inspect
import sys
import types
from pathlib import Path

import pytest
import torch

from modelscope_cartoon.schedulers import build

STEPS = 10
SD = {'num_train_timesteps': 1000, 'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear'}
# Imported at the top of sampling.py and utils.py for functions that are not called here; not all are installed.
UNUSED = {'torchdiffeq': ('odeint',), 'torchsde': (), 'torchvision': (), 'torchvision.transforms': ('functional',)}


@pytest.fixture(scope='module')
def sampling():
    """k_diffusion/sampling.py without the package around it, whose __init__ imports training code."""
    root = Path(importlib.util.find_spec('k_diffusion').origin).parent
    package = types.ModuleType('k_diffusion')
    package.__path__ = [str(root)]
    stubs = {'k_diffusion': package}
    for name, attributes in UNUSED.items():
        if importlib.util.find_spec(name.partition('.')[0]) is None:
            stubs[name] = types.ModuleType(name)
            stubs[name].__dict__.update(dict.fromkeys(attributes))
    with pytest.MonkeyPatch.context() as patch:
        for name, module in stubs.items():
            patch.setitem(sys.modules, name, module)
        yield importlib.import_module('k_diffusion.sampling')
        for name in ('k_diffusion.sampling', 'k_diffusion.utils'):
            sys.modules.pop(name, None)


def start(sigma: torch.Tensor) -> torch.Tensor:
    return torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(0)) * sigma


def toy_noise(scaled: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """diffusers' toy model (tests/schedulers/test_schedulers.py, `dummy_model`), with sigma for the timestep."""
    return scaled * sigma / (sigma + 1)


def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    sigma = sigma[0]
    return x - sigma * toy_noise(x / (sigma ** 2 + 1) ** 0.5, sigma)


def ours(label: str, **config) -> tuple[torch.Tensor, torch.Tensor]:
    """(what the row `label` ends at, its distinct noise levels)."""
    scheduler = build(label, {**SD, **config})
    scheduler.set_timesteps(STEPS)
    generator = torch.Generator().manual_seed(1)
    sigmas = scheduler.sigmas.clone()
    x = start(sigmas[0])
    if scheduler.init_noise_sigma == 1:
        x = x / (1 + sigmas[0] ** 2) ** 0.5
    noise = {'generator': generator} if 'generator' in inspect.signature(scheduler.step).parameters else {}
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(toy_noise(scheduler.scale_model_input(x, t), sigmas[i]), t, x, **noise).prev_sample
    return x, torch.unique_consecutive(sigmas)


def same_noise(x: torch.Tensor):
    generator = torch.Generator().manual_seed(1)
    return lambda *_: torch.randn(x.shape, generator=generator)


@pytest.mark.parametrize(('label', 'function'), [('Euler', 'sample_euler'), ('Heun', 'sample_heun'),
                                                 ('LMS', 'sample_lms'), ('DPM++ 2M', 'sample_dpmpp_2m')])
def test_a_deterministic_row_ends_where_k_diffusion_ends(sampling, label, function):
    got, sigmas = ours(label)
    expected = getattr(sampling, function)(denoiser, start(sigmas[0]), sigmas, disable=True)
    assert len(sigmas) == STEPS + 1
    assert (got - expected).abs().max() < 1e-5


@pytest.mark.parametrize(('label', 'function'), [('Euler a', 'sample_euler_ancestral'),
                                                 ('DPM++ 2M SDE', 'sample_dpmpp_2m_sde')])
def test_a_stochastic_row_ends_where_k_diffusion_ends_with_the_same_noise(sampling, label, function):
    got, sigmas = ours(label)
    x = start(sigmas[0])
    expected = getattr(sampling, function)(denoiser, x, sigmas, disable=True, noise_sampler=same_noise(x))
    assert (got - expected).abs().max() < 1e-5


@pytest.mark.parametrize(('label', 'function'), [('DPM++ 2M Karras', 'sample_dpmpp_2m'),
                                                 ('DPM++ 2M SDE Karras', 'sample_dpmpp_2m_sde')])
def test_a_karras_row_ends_where_k_diffusion_ends_on_its_own_karras_schedule(sampling, label, function):
    betas = torch.linspace(SD['beta_start'] ** 0.5, SD['beta_end'] ** 0.5, SD['num_train_timesteps']) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    trained = ((1 - alphas) / alphas) ** 0.5
    sigmas = sampling.get_sigmas_karras(STEPS, trained[0].item(), trained[-1].item())
    x = start(sigmas[0])
    noise = {'noise_sampler': same_noise(x)} if 'sde' in function else {}
    expected = getattr(sampling, function)(denoiser, x, sigmas, disable=True, **noise)
    assert (ours(label)[0] - expected).abs().max() < 1e-3
