"""Offline, one thread (the tiny models are too small for two), and a tiny model folder that tests share."""
from __future__ import annotations

import os
import signal
from pathlib import Path

os.environ.setdefault('HF_HUB_OFFLINE', '1')

import pytest
import tiny
import torch

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)     # a run in the background would start with Ctrl-C ignored


@pytest.fixture(scope='session')
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with safetensors and our configuration.json. Read only: copy it before you change it."""
    return tiny.build(tmp_path_factory.mktemp('models') / 'tiny')


@pytest.fixture(scope='session')
def tiny_pipe(tiny_folder: Path):
    from modelscope_cartoon import load_pipeline
    return load_pipeline(tiny_folder, device='cpu')


@pytest.fixture(scope='module')
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What a training run takes: a folder of pictures, and a base. Read only."""
    import training_runs  # needs Unix; the other tests don't
    root = tmp_path_factory.mktemp('inputs')
    return training_runs.write_pictures(root / 'pictures'), training_runs.write_base(root / 'base')
