"""Runs functions in new processes that start at once: forks of one interpreter that has imported the big libraries,
but neither modelscope nor modelscope_cartoon, so that each one imports those two in its own order and environment.
"""
from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import tiny

_START, _LIMIT = 300, 300      # seconds for the libraries, and for one function, on a machine that does other things


class Zygote:
    def __init__(self) -> None:
        spawn = multiprocessing.get_context('spawn')
        self._near, far = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(far,))
        self._process.start()
        far.close()
        self._ready = False

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join(10)
        self._near.close()

    def run(self, function: Callable, *arguments: Any, **environment: str) -> Any:
        """What the module-level `function` returns in a new process with `environment`; AssertionError if it raises."""
        if not self._ready:
            assert self._near.poll(_START) and self._near.recv() == 'ready', 'the zygote did not start'
            self._ready = True
        self._near.send((function, arguments, environment))
        assert self._near.poll(_LIMIT + 10), f'{function.__name__} did not end in {_LIMIT} s'
        raised, result = self._near.recv()
        assert not raised, f'{function.__name__} raised in its process:\n{result}'
        return result


def _serve(connection: Connection) -> None:
    os.environ['CUDA_VISIBLE_DEVICES'] = ''     # the same on a machine with a GPU
    _warm_up()
    connection.send('ready')
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        connection.send(_in_fork(*task))


def _warm_up() -> None:
    """Imports the big libraries, and has them load and draw once, so that what they do only once is done."""
    import cv2  # noqa: F401
    import datasets  # noqa: F401
    import torch
    from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionPipeline  # noqa: F401

    torch.set_num_threads(1)     # a pool of threads would not survive a fork
    with tempfile.TemporaryDirectory() as folder:
        pipe = StableDiffusionPipeline.from_pretrained(tiny.build(Path(folder), configuration=None))
    pipe('a cat', num_inference_steps=1)


def _in_fork(function: Callable, arguments: tuple, environment: dict[str, str]) -> tuple[bool, Any]:
    fork = multiprocessing.get_context('fork')
    near, far = fork.Pipe(duplex=False)
    process = fork.Process(target=_work, args=(far, function, arguments, environment))
    process.start()
    far.close()
    try:
        return near.recv() if near.poll(_LIMIT) else (True, f'no end in {_LIMIT} s')
    except EOFError:
        return True, 'the process died'
    finally:
        near.close()
        process.kill()
        process.join(10)


def _work(connection: Connection, function: Callable, arguments: tuple, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    try:
        connection.send((False, function(*arguments)))
    except BaseException:
        connection.send((True, traceback.format_exc()))
