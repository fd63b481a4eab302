"""16-bit copies: made once and whole, used when they are what is wanted, seen and given back."""
from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from modelscope_cartoon import cache, cli, doctor, load_pipeline, prepared, reading, weights
from modelscope_cartoon.errors import DamagedWeights, OutputError
from modelscope_cartoon.folder import ModelFolder

BF16 = torch.bfloat16
PARTS = ('unet', 'vae', 'text_encoder')


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv('MODELSCOPE_CARTOON_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture(scope='module')
def bin_folder(tmp_path_factory) -> Path:
    return tiny.build(tmp_path_factory.mktemp('models') / 'bin', safe=False, seed=1)


def made(folder: Path, dtype: torch.dtype = BF16) -> Path:
    steps: list[str] = []
    assert prepared.prepare(ModelFolder(folder), dtype, steps.append) and len(steps) == 3
    return prepared.find(ModelFolder(folder), dtype)


def command(capsys, *arguments: str) -> dict:
    assert cli.main(['prepare', *arguments, '--json']) == 0
    return json.loads(capsys.readouterr().out)


def picture(folder: Path, **options):
    return load_pipeline(folder, device='cpu', dtype='bfloat16', **options)('a cat', seed=1, num_inference_steps=2,
                                                                             )['output_imgs'][0]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('safe', [True, False])
def test_a_copy_holds_the_weights_in_the_precision_and_half_the_bytes(tiny_folder, bin_folder, safe, dtype):
    folder = tiny_folder if safe else bin_folder
    copy = made(folder, dtype)
    direct, copied = weights.load(ModelFolder(folder), dtype), prepared.load(ModelFolder(folder), dtype)
    for part in PARTS:
        expected, found = getattr(direct, part).state_dict(), getattr(copied, part).state_dict()
        assert list(expected) == list(found)
        assert all(torch.equal(expected[key], found[key]) and found[key].dtype == expected[key].dtype for key in found)
    half = sum(file.stat().st_size for file in copy.glob('*.safetensors'))
    assert half < 0.62 * sum(files.bytes for files in ModelFolder(folder).weights.values())     # headers are small


def test_the_copy_is_used_when_its_precision_is_wanted_and_the_log_says_so(tiny_folder, caplog):
    caplog.set_level(logging.INFO, 'modelscope_cartoon')
    before = picture(tiny_folder)
    assert 'prepared' not in caplog.text
    made(tiny_folder)
    load_pipeline(tiny_folder, device='cpu')
    assert 'prepared' not in caplog.text
    assert (picture(tiny_folder) == before).all()
    assert 'using the prepared bfloat16 copy of the weights at' in caplog.text


def test_the_copys_tensors_stay_on_disk_until_they_are_used(tiny_folder):
    copy = made(tiny_folder)
    with Path('/proc/self/maps').open() as maps:
        assert str(copy) not in maps.read()
    pipe = prepared.load(ModelFolder(tiny_folder), BF16)
    ranges = [line.split()[0].split('-') for line in Path('/proc/self/maps').read_text().splitlines()
              if str(copy) in line]
    mapped = [range(int(start, 16), int(end, 16)) for start, end in ranges]
    assert len(mapped) == 3
    for part in PARTS:
        assert all(any(p.data_ptr() in pages for pages in mapped) for p in getattr(pipe, part).parameters())


def test_preparing_twice_does_nothing_and_says_so(tiny_folder, capsys):
    first = command(capsys, str(tiny_folder))['prepared'][-1]
    assert first['backend'] == 'torch' and first['built'] and first['bytes'] > 10_000 and len(first['steps']) == 3
    again = command(capsys, str(tiny_folder))['prepared'][-1]
    assert not again['built'] and again['bytes'] == 0
    assert cli.main(['prepare', str(tiny_folder)]) == 0
    assert 'torch: nothing to do' in capsys.readouterr().out


def test_a_change_of_the_weights_is_another_model(tiny_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / 'model'))
    first = made(folder)
    unet = folder / 'unet/diffusion_pytorch_model.safetensors'
    data = bytearray(unet.read_bytes())
    data[-3] ^= 1
    unet.write_bytes(data)
    assert prepared.find(ModelFolder(folder), BF16) is None
    assert prepared.prepare(ModelFolder(folder), BF16, lambda line: None)
    assert prepared.find(ModelFolder(folder), BF16) != first


def test_a_folder_that_was_never_read_is_not_read_for_its_hash(tiny_folder, monkeypatch):
    monkeypatch.setattr(cache, 'file_sha256', lambda path: pytest.fail('read gigabytes'))
    assert prepared.find(ModelFolder(tiny_folder), BF16) is None


def test_what_two_models_have_in_common_is_on_disk_once(tiny_folder, tmp_path, capsys):
    other = Path(shutil.copytree(tiny_folder, tmp_path / 'other'))
    unet = other / 'unet/diffusion_pytorch_model.safetensors'
    data = bytearray(unet.read_bytes())
    data[-3] ^= 1
    unet.write_bytes(data)
    first, second = made(tiny_folder), made(other)
    for part in PARTS:
        same = (first / f'{part}.safetensors').samefile(second / f'{part}.safetensors')
        assert same == (part != 'unet')
    listed = command(capsys, '--list')
    assert listed['bytes'] < sum(entry['bytes'] for entry in listed['entries'])
    before = picture(other)
    command(capsys, '--remove', str(tiny_folder))
    assert not first.exists() and (picture(other) == before).all()
    assert prepared.damage(second) is None


def test_what_was_prepared_is_listed_and_removed(tiny_folder, own_cache, capsys):
    copy = made(tiny_folder)
    [entry] = command(capsys, '--list')['entries']
    assert entry['model'] == str(tiny_folder) and entry['path'] == str(copy) and entry['bytes'] > 10_000
    assert cli.main(['prepare', '--list']) == 0 and str(tiny_folder) in capsys.readouterr().out
    assert command(capsys, '--remove', entry['name'])['bytes'] == entry['bytes']
    assert command(capsys, '--list') == {'entries': [], 'bytes': 0}
    assert [path for path in own_cache.rglob('*') if path.is_file()] == [own_cache / 'hashes.json']
    assert cli.main(['prepare', '--remove', str(tiny_folder)]) == 1
    assert 'nothing was prepared' in capsys.readouterr().err


@pytest.mark.parametrize('arguments', [[], ['a', '--list'], ['--list', '--remove', 'a'], ['a', '--dtype', 'int4']])
def test_a_command_that_makes_no_sense_is_bad_input(arguments, tiny_folder, capsys):
    arguments = [str(tiny_folder) if one == 'a' else one for one in arguments]
    try:
        code = cli.main(['prepare', *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize('harm', ['cut', 'gone'])
def test_a_damaged_copy_is_passed_over_and_made_again(tiny_folder, caplog, harm):
    file = made(tiny_folder) / 'unet.safetensors'
    file.write_bytes(file.read_bytes()[:-1]) if harm == 'cut' else file.unlink()
    assert prepared.find(ModelFolder(tiny_folder), BF16) is None and 'is not used' in caplog.text
    picture(tiny_folder)
    made(tiny_folder)


def test_a_flipped_bit_in_a_copy_is_found(tiny_folder):
    copy = made(tiny_folder)
    assert prepared.damage(copy) is None
    data = bytearray((copy / 'vae.safetensors').read_bytes())
    data[-1] ^= 1
    (copy / 'vae.safetensors').write_bytes(data)
    assert 'vae.safetensors' in prepared.damage(copy)
    found = doctor.copies()
    assert list(found) == [f'prepared/{copy.name}'] and 'vae.safetensors' in found[f'prepared/{copy.name}']


def test_broken_weights_are_refused_and_no_copy_is_left(tiny_folder, tmp_path, own_cache):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / 'model'))
    vae = folder / 'vae/diffusion_pytorch_model.safetensors'
    data = bytearray(vae.read_bytes())
    data[-4:] = b'\x00\x00\xc0\x7f'
    vae.write_bytes(data)
    with pytest.raises(DamagedWeights, match='NaN'):
        prepared.prepare(ModelFolder(folder), BF16, lambda line: None)
    assert not cache.entries() and not list(own_cache.rglob('*.safetensors'))


def test_a_full_disk_leaves_nothing_half(tiny_folder, own_cache):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        cache.weights_hash(ModelFolder(tiny_folder))
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
        with pytest.raises(OutputError, match='free some disk space'):
            prepared.prepare(ModelFolder(tiny_folder), BF16, lambda line: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert not cache.entries() and not list(own_cache.rglob('*.safetensors'))
    made(tiny_folder)


def test_too_little_disk_space_is_said_before_anything_is_converted(tiny_folder, monkeypatch):
    monkeypatch.setattr(prepared.shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(9, 9, 9))
    monkeypatch.setattr(weights, 'load_component', lambda *arguments: pytest.fail('converted'))
    with pytest.raises(OutputError, match='are needed and 0.0 GiB free'):
        prepared.prepare(ModelFolder(tiny_folder), BF16, lambda line: None)


def test_a_kill_leaves_nothing_that_counts(tiny_folder, own_cache):
    child = os.fork()
    if child == 0:
        cache.weights_hash(ModelFolder(tiny_folder))
        prepared.prepare(ModelFolder(tiny_folder), BF16, lambda line: os.kill(os.getpid(), signal.SIGKILL))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert list(own_cache.rglob('*.safetensors')) and not cache.entries()
    made(tiny_folder)
    assert len(list(own_cache.rglob('*.safetensors'))) == 3


@pytest.mark.parametrize('safe', [True, False])
def test_weights_are_converted_a_portion_at_a_time(tiny_folder, bin_folder, safe, monkeypatch):
    files = ModelFolder(tiny_folder if safe else bin_folder).weights['unet']
    whole = reading.state_dict(files, BF16)
    opened = []
    real = reading._safetensors if safe else reading._pickle
    monkeypatch.setattr(reading, '_safetensors' if safe else '_pickle', lambda path: opened.append(path) or real(path))
    monkeypatch.setattr(reading, 'PORTION', files.bytes // 5)
    portions = reading.state_dict(files, BF16)
    assert 4 <= len(opened) <= 8 and set(portions) == set(whole)
    assert all(torch.equal(whole[name], portions[name]) and portions[name].dtype == BF16 for name in whole)


def test_weights_in_the_wanted_precision_are_mapped_and_not_copied(tiny_folder):
    files = ModelFolder(tiny_folder).weights['unet']
    state, stored = reading.state_dict(files, torch.float32), load_file(files.paths[0])
    assert all(torch.equal(state[name], stored[name]) for name in stored)
    assert str(files.paths[0]) in Path('/proc/self/maps').read_text()
