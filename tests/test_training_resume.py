"""A run that is killed, stopped or out of disk goes on to the very result of an unbroken one; two processes do what
one does."""
from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
import training_runs as runs
from hosting import zygote  # noqa: F401
from safetensors.torch import load_file

from modelscope_cartoon.errors import InvalidRequest, NonFiniteError, Stopped
from modelscope_cartoon.training import run
from modelscope_cartoon.training.checkpoint import last_checkpoint

LORA = 'pytorch_lora_weights.safetensors'


@pytest.fixture(scope='module')
def unbroken(inputs, tmp_path_factory) -> Path:
    return runs.train(*inputs, tmp_path_factory.mktemp('unbroken') / 'style')


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob('*'))
            if path.is_file() and '.training' not in path.parts}


def steps_of(output: Path) -> list[str]:
    return sorted(path.name for path in (output / '.training' / 'checkpoints').iterdir())


@pytest.mark.parametrize('at, left', [('step', ['step-00000004']), ('checkpoint', ['step-00000004']),
                                      ('output', ['step-00000008', 'step-00000010'])])
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(at, left, inputs, unbroken, zygote, tmp_path):  # noqa: F811
    with pytest.raises(AssertionError, match='died'):
        zygote.run(runs.train_and_die, *inputs, tmp_path / 'style', at)
    assert [name for name in steps_of(tmp_path / 'style') if name.startswith('step-')] == left
    assert not (tmp_path / 'style' / 'manifest.json').exists()
    runs.train(*inputs, tmp_path / 'style', resume=True)
    assert files(tmp_path / 'style') == files(unbroken)


def test_a_moving_average_and_the_text_encoder_resume_too(inputs, zygote, tmp_path):  # noqa: F811
    settings = {'ema': 0.9, 'train_text_encoder': True, 'lora_dropout': 0.1, 'accumulation': 2}
    whole = runs.train(*inputs, tmp_path / 'whole', **settings)
    with pytest.raises(AssertionError, match='died'):
        zygote.run(_die_with, *inputs, tmp_path / 'cut', settings)
    runs.train(*inputs, tmp_path / 'cut', resume=True, **settings)
    assert files(tmp_path / 'cut') == files(whole)


def _die_with(pictures, base, output, settings):
    runs.train_and_die(pictures, base, output, 'checkpoint', **settings)


def test_ctrl_c_finishes_the_step_saves_it_and_says_how_to_go_on(inputs, unbroken, tmp_path, monkeypatch):
    monkeypatch.setattr(run.Samples, 'draw', lambda self, step: step == 3 and os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped, match='after step 4 of 10, which is saved; .* --resume'):
        runs.train(*inputs, tmp_path / 'style', sample_every=3)
    assert signal.getsignal(signal.SIGINT) is before
    runs.train(*inputs, tmp_path / 'style', resume=True)
    assert files(tmp_path / 'style')[LORA] == files(unbroken)[LORA]


def test_a_full_disk_leaves_the_last_checkpoint_whole(inputs, unbroken, zygote, tmp_path):  # noqa: F811
    assert 'could not be written' in zygote.run(runs.train_until_the_disk_is_full, *inputs, tmp_path / 'style')
    assert steps_of(tmp_path / 'style') == ['step-00000004']
    runs.train(*inputs, tmp_path / 'style', resume=True)
    assert files(tmp_path / 'style')[LORA] == files(unbroken)[LORA]


def test_a_damaged_checkpoint_is_passed_over(inputs, unbroken, tmp_path, caplog):
    output = runs.train(*inputs, tmp_path / 'style', checkpoint_every=5)
    assert steps_of(output) == ['step-00000005', 'step-00000010']
    broken = output / '.training' / 'checkpoints' / 'step-00000010' / 'trained.safetensors'
    broken.write_bytes(broken.read_bytes()[:-1] + b'\x01')
    assert last_checkpoint(broken.parent.parent).step == 5 and 'is not whole' in caplog.text
    runs.train(*inputs, output, resume=True)
    assert files(output)[LORA] == files(unbroken)[LORA]


def test_two_processes_and_pieces_of_a_batch_give_what_one_process_gives(inputs, zygote, tmp_path):  # noqa: F811
    one = runs.train(*inputs, tmp_path / 'one', train_text_encoder=True)
    pieces = runs.train(*inputs, tmp_path / 'pieces', train_text_encoder=True, accumulation=3)
    assert zygote.run(runs.train_in_two_processes, *inputs, tmp_path / 'two') == [0, 0]
    whole, start = _trained(one), _trained(one, 4)
    for other in (pieces, tmp_path / 'two'):
        trained = _trained(other)
        assert trained.keys() == whole.keys()
        difference = torch.cat([(trained[k] - whole[k]).flatten() for k in whole]).norm()
        learnt = torch.cat([(whole[k] - start.get(k, 0)).flatten() for k in whole]).norm()
        assert difference < 0.01 * learnt, other.name


def _trained(output: Path, step: int = runs.STEPS) -> dict[str, torch.Tensor]:
    folders = {name: output / '.training' / 'checkpoints' / name for name in steps_of(output)}
    path = folders.get(f'step-{step:08}')
    return load_file(path / 'trained.safetensors') if path else {}


def test_a_loss_that_is_no_number_names_the_step_and_the_picture(inputs, tmp_path, monkeypatch):
    real = run.prepare

    def with_a_bad_one(base, examples, prior):
        material = real(base, examples, prior)
        material.latents[3][:] = float('nan')
        return material
    monkeypatch.setattr(run, 'prepare', with_a_bad_one)
    with pytest.raises(NonFiniteError, match=r'step \d+: the loss of 3\.png is not a finite number'):
        runs.train(*inputs, tmp_path / 'style', checkpoint_every=1)
    kept = last_checkpoint(tmp_path / 'style' / '.training' / 'checkpoints')
    assert kept is None or all(torch.isfinite(t).all() for t in kept.tensors['trained'].values())


def test_another_run_s_output_is_not_written_over_or_gone_on_with(inputs, unbroken, tmp_path):
    with pytest.raises(InvalidRequest, match='--resume'):
        runs.train(*inputs, unbroken)
    with pytest.raises(InvalidRequest, match=r'other settings: learning_rate \(was 0\.001\)'):
        runs.train(*inputs, unbroken, resume=True, learning_rate=1e-4)
    with pytest.raises(InvalidRequest, match='pictures changed'):
        runs.train(runs.write_pictures(tmp_path / 'more', 11), inputs[1], unbroken, resume=True)


def test_a_batch_that_does_not_divide_is_refused(inputs, tmp_path):
    with pytest.raises(InvalidRequest, match='use a multiple'):
        runs.train(*inputs, tmp_path / 'style', accumulation=4)
