"""Choosing what runs the networks, and saying so."""
from __future__ import annotations

import logging

import pytest
import torch

from modelscope_cartoon import backends, load_pipeline
from modelscope_cartoon.backends.eager import Eager
from modelscope_cartoon.errors import ModelError, UnknownOption
from modelscope_cartoon.folder import ModelFolder

CPU = torch.device('cpu')


class Elsewhere(Eager):
    name = 'elsewhere'

    @classmethod
    def missing(cls, device):
        return 'it needs a machine from elsewhere; buy one.'


class Stranger(Eager):
    name = 'stranger'

    @classmethod
    def obstacle(cls, folder):
        return 'its UNet is of another kind.'


@pytest.fixture
def more(monkeypatch):
    monkeypatch.setattr(backends, '_MODULES', {'elsewhere': f'{__name__}.Elsewhere', 'stranger': f'{__name__}.Stranger',
                                               'torch': 'eager.Eager'})
    here = {'elsewhere': Elsewhere, 'stranger': Stranger, 'torch': Eager}
    monkeypatch.setattr(backends, 'get_backend', here.__getitem__)


def test_an_unknown_backend_is_refused_with_the_nearest_name(tiny_folder):
    with pytest.raises(UnknownOption, match="unknown backend 'torhc'.*did you mean 'torch'"):
        load_pipeline(tiny_folder, device='cpu', backend='torhc')


def test_auto_says_what_it_chose_and_why(tiny_folder, caplog):
    caplog.set_level(logging.INFO, 'modelscope_cartoon')
    pipe = load_pipeline(tiny_folder, device='cpu')
    assert pipe.model.backend == 'torch'
    assert "backend 'torch': runs everywhere, here on cpu in float32." in caplog.text


def test_a_backend_that_lacks_something_says_how_to_get_it(tiny_folder, more):
    with pytest.raises(ModelError, match="backend 'elsewhere' can't run here: it needs a machine from elsewhere"):
        backends.choose('elsewhere', ModelFolder(tiny_folder), CPU, torch.float32)


def test_a_backend_that_can_not_draw_this_model_gives_way_to_torch_and_says_so(tiny_folder, more, caplog):
    assert backends.choose('stranger', ModelFolder(tiny_folder), CPU, torch.float32) is Eager
    assert 'its UNet is of another kind. Drawing with torch instead.' in caplog.text


def test_auto_passes_over_what_is_missing_or_in_the_way(tiny_folder, more):
    assert backends.choose('auto', ModelFolder(tiny_folder), CPU, torch.float32) is Eager
