"""Training runs on tiny models: the pictures, the settings, and functions that run in processes of their own."""
from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import socket
from pathlib import Path
from typing import Any

import numpy as np
import tiny
from PIL import Image

STEPS = 10
SETTINGS = {'steps': STEPS, 'batch_size': 6, 'checkpoint_every': 4, 'sample_every': 0, 'prior_count': 4,
            'sample_steps': 2, 'rank': 4, 'warmup_steps': 2, 'crops': 2, 'name': 'style'}


def write_pictures(folder: Path, count: int = 10) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (64 + i, 80, 3), dtype=np.uint8)).save(folder / f'{i}.png')
        (folder / f'{i}.txt').write_text(f'a cat {i % 3}')
    return folder


def write_base(folder: Path) -> Path:
    return tiny.build(folder, prediction_type='v_prediction')


def train(pictures: Path, base: Path, output: Path, **settings: Any) -> Path:
    from modelscope_cartoon.training import train

    return train(pictures, output, base=str(base), device='cpu', **{**SETTINGS, **settings})


def train_and_die(pictures: Path, base: Path, output: Path, at: str, **settings: Any) -> None:
    """kill -9 in the middle of a step, of a checkpoint, or of the finished model's files."""
    from modelscope_cartoon.training import checkpoint, loop
    from modelscope_cartoon.training import output as finished

    def deadly(function: Any, call: int) -> Any:
        calls = iter(range(1000))

        def wrapped(*arguments: Any, **options: Any) -> Any:
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return wrapped
    if at == 'step':
        loop.Loop.errors = deadly(loop.Loop.errors, 6)
    elif at == 'checkpoint':
        checkpoint.write_file = deadly(checkpoint.write_file, 5)     # one file of the second is written
    else:
        finished.write_file = deadly(finished.write_file, 2)
    train(pictures, base, output, **settings)


def train_until_the_disk_is_full(pictures: Path, base: Path, output: Path) -> str:
    from modelscope_cartoon.errors import OutputError
    from modelscope_cartoon.training.sheet import Samples

    Samples.draw = lambda self, step: step == 5 and resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        train(pictures, base, output, sample_every=5)
    except OutputError as error:
        return str(error)
    return 'no error'


def train_in_two_processes(pictures: Path, base: Path, output: Path) -> list[int | None]:
    """Exit codes of two processes as `accelerate launch` starts them, on a CPU over gloo."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context('fork')
    ranks = [fork.Process(target=_rank, args=(rank, port, pictures, base, output)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(200)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    return codes


def _rank(rank: int, port: int, pictures: Path, base: Path, output: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2',
                      MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), ACCELERATE_USE_CPU='true')
    train(pictures, base, output, train_text_encoder=True)
