"""What doctor says of the backends: from their own contract."""
from __future__ import annotations

import json
import shutil

import pytest
import torch

from modelscope_cartoon import backends, doctor, mini
from modelscope_cartoon.backends.compiled import Compiled
from modelscope_cartoon.cli import main
from modelscope_cartoon.folder import ModelFolder


@pytest.fixture(autouse=True)
def tiny_as_mini(monkeypatch, tiny_folder):
    monkeypatch.setattr(mini, 'path', lambda: tiny_folder)


def test_every_backend_is_listed_with_what_it_lacks_or_does_for_each_model(capsys):
    assert main(['doctor', '--json']) == 0
    rows = json.loads(capsys.readouterr().out)['backends']
    assert list(rows) == list(backends.NAMES[1:])
    assert rows['torch']['missing'] is None
    assert rows['torch']['models']['mini'] == {'obstacle': None, 'recommended': 'runs everywhere, here on cpu in '
                                                                                'float32.'}


def test_a_backend_says_how_to_get_what_it_lacks(capsys, monkeypatch):
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    monkeypatch.setattr(backends.get_backend('int8'), 'missing', classmethod(lambda cls, device: None))
    assert main(['doctor']) == 0
    out = capsys.readouterr().out
    assert 'backend       compile: it needs a C++ compiler; on Debian or Ubuntu: apt-get install g++.' in out
    assert 'int8 for mini: where it is named alone: --backend int8' in out
    assert 'compile for mini' not in out and 'torch for mini: runs everywhere' in out


def test_an_obstacle_a_recommendation_and_neither_are_three_lines(capsys, monkeypatch, tiny_folder):
    monkeypatch.setattr(Compiled, 'missing', classmethod(lambda cls, device: None))
    doctor._print({**_findings(), 'backends': doctor.backends({'mini': str(tiny_folder), 'gone': None})})
    out = capsys.readouterr().out
    assert 'compile for mini: auto leaves it: it is not prepared (modelscope-cartoon prepare mini)' in out
    monkeypatch.setattr(Compiled, 'obstacle', classmethod(lambda cls, folder: 'it is of another kind.'))
    row = doctor.backends({'mini': str(tiny_folder)})['compile']['models']['mini']
    assert row == {'obstacle': 'it is of another kind.', 'recommended': None}


def test_a_damaged_model_is_an_obstacle_and_no_traceback(tmp_path):
    (tmp_path / 'broken').mkdir()
    row = doctor._chances(backends.get_backend('torch'), str(tmp_path / 'broken'), torch.device('cpu'))
    assert 'broken' in row['obstacle'] and row['recommended'] is None
    with pytest.raises(Exception, match='broken'):
        ModelFolder(tmp_path / 'broken')


def _findings() -> dict:
    return {'python': '', 'packages': {}, **doctor.machine(), 'models': {}, 'advice': []}
