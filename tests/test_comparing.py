"""The compare command: what is drawn, what is measured, and a candidate's fault as its own."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modelscope_cartoon import backends, candidates
from modelscope_cartoon.backends.eager import Eager
from modelscope_cartoon.cli import main
from modelscope_cartoon.presets import EXACT, Preset

FAST = {'num_inference_steps': 2, 'scheduler': 'DPM++ 2M', 'guidance_interval': (0.0, 0.5)}
EXACT_IN_FOUR = {'num_inference_steps': 4}


class Elsewhere(Eager):
    name = 'elsewhere'

    def __init__(self, *arguments):
        raise RuntimeError('no network\nto elsewhere')


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Presets of few steps, in an empty folder."""
    rows = {name: Preset(name, '', '', fields) for name, fields in (
        (EXACT, EXACT_IN_FOUR), ('balanced', FAST), ('fast', FAST))}
    for module in ('request', 'comparing'):
        monkeypatch.setattr(f'modelscope_cartoon.{module}.get_preset', rows.__getitem__)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def compare(tiny_folder, capsys):
    """compare(...) -> (exit code, stdout, stderr)"""
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(['compare', str(tiny_folder), '--device', 'cpu', *map(str, arguments)])
        return code, *capsys.readouterr()
    return run


def test_presets_are_measured_against_exact_on_torch(compare):
    code, out, _ = compare('--prompt', 'a cat', 'a dog', '--preset', 'fast', '--seed', 1, '-o', 'out', '--json')
    report = json.loads(out)
    exact, fast = report['candidates']
    assert code == 0 and report['reference'] == exact['name'] == 'torch exact' and fast['name'] == 'torch fast'
    assert exact['evaluations'] == [8, 8] and fast['evaluations'] == [3, 3]     # one of two steps without guidance
    assert exact['latent_distance'] == exact['pixel_distance'] == 0 and fast['latent_distance'] > 0.01
    one, other = (np.asarray(Image.open(row['files'][1])).astype(float) for row in (exact, fast))
    assert fast['pixel_distance'] == pytest.approx(
        np.mean([np.abs(one - other).mean(), _difference(exact['files'][0], fast['files'][0])]))
    assert Image.open(report['sheet']).size[0] > 2 * 256 and Path('out/compare.json').is_file()


def _difference(one: str, other: str) -> float:
    a, b = (np.asarray(Image.open(path)).astype(float) for path in (one, other))
    return np.abs(a - b).mean()


def test_the_pictures_are_those_of_draw(compare, tiny_folder):
    compare('--prompt', 'a cat', '--preset', 'exact', '--seed', 5, '-o', 'out')
    assert main(['draw', 'a cat', '--model', str(tiny_folder), '--device', 'cpu', '--seed', '5', '-o', 'cat.png']) == 0
    assert (np.asarray(Image.open('out/torch-exact-1.png')) == np.asarray(Image.open('cat.png'))).all()


def test_the_table_has_a_line_for_each_and_names_the_sheet(compare):
    code, out, _ = compare('--prompt', 'a cat', '--preset', 'fast', '--steps', 3, '--scheduler', 'UniPC')
    lines = out.splitlines()
    assert code == 0 and lines[0].split() == ['seconds', 'faster', 'UNet', 'calls', 'latents', 'pixels']
    assert [line.split()[:2] for line in lines[1:3]] == [['torch', 'exact'], ['torch', 'fast']]
    assert lines[3].startswith('torch scheduler=UniPC num_inference_steps=3') and lines[4] == 'compare/sheet.png'


def test_a_candidates_fault_is_one_line_and_the_others_are_drawn(compare, monkeypatch):
    monkeypatch.setattr(backends, 'NAMES', ('auto', 'elsewhere', 'torch'))
    monkeypatch.setattr(backends, 'get_backend', {'elsewhere': Elsewhere, 'torch': Eager}.__getitem__)
    code, out, _ = compare('--prompt', 'a cat', '--preset', 'fast', '--backend', 'elsewhere')
    assert code == 1
    assert [line for line in out.splitlines() if line.startswith('elsewhere')] == [
        f'elsewhere {name:<5}  RuntimeError: no network to elsewhere' for name in ('exact', 'fast')]
    assert json.loads(Path('compare/compare.json').read_text())['candidates'][1]['pixel_distance'] > 0


def test_one_model_at_a_time_is_loaded(compare, monkeypatch):
    import gc
    import weakref
    seen: list[weakref.ref] = []
    real = candidates._load

    def load(*arguments, **options):
        gc.collect()
        assert not any(ref() for ref in seen)
        pipe = real(*arguments, **options)
        seen.append(weakref.ref(pipe.model))
        return pipe
    monkeypatch.setattr(candidates, '_load', load)
    monkeypatch.setattr(backends, 'NAMES', ('auto', 'again', 'torch'))
    again = type('Again', (Eager,), {'name': 'again'})
    monkeypatch.setattr(backends, 'get_backend', {'again': again, 'torch': Eager}.__getitem__)
    assert compare('--prompt', 'a cat', '--preset', 'exact')[0] == 0 and len(seen) == 2


@pytest.mark.parametrize('arguments, words', [
    ((), 'give --prompt, or --prompt-file'), (('--prompt', 'a cat', '--steps', '0'), 'num_inference_steps is 0'),
    (('--prompt', 'a cat', '--backend', 'torhc'), "did you mean 'torch'")])
def test_what_can_not_be_drawn_is_said_before_anything_is_loaded(compare, arguments, words):
    code, _, err = compare(*arguments)
    assert code == 2 and words in err and err.count('\n') == 1
