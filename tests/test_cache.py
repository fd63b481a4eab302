"""What is kept between two runs: built once, whole or not at all, under the weights' own hash."""
from __future__ import annotations

import os
import shutil
import threading
import time

import pytest

from modelscope_cartoon import cache
from modelscope_cartoon.errors import OutputError
from modelscope_cartoon.folder import ModelFolder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('MODELSCOPE_CARTOON_CACHE', str(tmp_path / 'cache'))


def test_the_hash_is_that_of_the_weights_and_not_of_the_folders_name(tiny_folder, tmp_path):
    copy = shutil.copytree(tiny_folder, tmp_path / 'copy')
    first = cache.weights_hash(ModelFolder(tiny_folder))
    assert cache.weights_hash(ModelFolder(copy)) == first
    weights = copy / 'unet' / 'diffusion_pytorch_model.safetensors'
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert cache.weights_hash(ModelFolder(copy)) != first


def test_a_file_is_read_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    path, reads = tmp_path / 'weights', []
    path.write_bytes(b'one')
    real = cache.file_sha256
    monkeypatch.setattr(cache, 'file_sha256', lambda p: reads.append(p) or real(p))
    first = cache.known_sha256(path)
    assert cache.known_sha256(path) == first and len(reads) == 1
    os.utime(path, ns=(1, 1))
    assert cache.known_sha256(path) == first and len(reads) == 2


def test_a_folder_is_built_once_whoever_asks(tmp_path):
    target, builds = tmp_path / 'cache' / 'thing', []

    def build(folder):
        builds.append(folder)
        time.sleep(0.2)
        (folder / 'file').write_text('whole')
    threads = [threading.Thread(target=cache.built, args=(target, build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1 and (target / 'file').read_text() == 'whole'
    assert cache.built(target, build) is False


def test_a_build_that_fails_leaves_nothing_and_the_next_one_succeeds(tmp_path):
    target = tmp_path / 'cache' / 'thing'

    def broken(folder):
        (folder / 'half').write_text('half')
        raise OSError(28, 'No space left on device')
    with pytest.raises(OutputError, match='No space left.*free some disk space'):
        cache.built(target, broken)
    assert not target.exists()
    (target.parent / '.thing.killed').mkdir()     # as a killed process leaves it
    assert cache.built(target, lambda folder: (folder / 'file').write_text('whole'))
    assert [p.name for p in target.parent.iterdir() if p.suffix != '.lock'] == ['thing']
