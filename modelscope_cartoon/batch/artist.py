"""Artist: draws a list of requests on one loaded model. It takes and gives plain data, and can be pickled before it
has loaded anything, so that it runs here, in a process of its own, or on another machine.
"""
from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from modelscope_cartoon.drawing import model_of
from modelscope_cartoon.errors import CartoonError, words_of
from modelscope_cartoon.log import each_warning_once


class Drawn(NamedTuple):
    """images: encoded, one a picture of the request; recipes in the same order; seconds: its share of the batch's."""
    images: list[bytes]
    recipes: list[dict[str, Any]]
    seconds: float


class Refused(NamedTuple):
    """Why a request couldn't be drawn, though it was tried alone. final: another try would end in the same way."""
    reason: str
    final: bool


Outcome = Drawn | Refused


class DeviceLost(CartoonError):
    """Nothing more can be drawn in this process, whatever the request."""
    code = 'device_lost'


class Artist:
    """model: as --model has it. batch_size: pictures drawn at once. shared: fields of every request that doesn't have
    them itself, output_type, the kind of file, among them. options: load_pipeline's.
    """

    def __init__(self, model: str, batch_size: int, shared: dict[str, Any], **options: Any):
        self.model, self.batch_size, self.shared, self.options = model, batch_size, shared, options
        self._loaded: tuple[str, Any] = ('', None)
        self._said: set[str] = set()

    def load(self, request: dict[str, Any]) -> Any:
        """The pipeline that draws `request`; CartoonError where its model can't be loaded."""
        name = model_of(self.model, request.get('style'))
        if self._loaded[0] != name:
            from modelscope_cartoon import load_pipeline
            self._loaded = ('', None)     # the one before goes first: two may not fit
            pipe = load_pipeline(name, **self.options)
            pipe.pipeline.set_progress_bar_config(disable=True)     # the batch has a line of its own
            self._loaded = name, pipe
        return self._loaded[1]

    def draw(self, requests: Sequence[dict[str, Any]]) -> list[Outcome]:
        """One outcome a request. Where drawing them together fails, each is drawn alone, so that one fails alone.

        DeviceLost where the process is of no more use.
        """
        pipe = self.load(requests[0])
        started = time.perf_counter()
        try:
            with each_warning_once(self._said):
                outputs = pipe([{**self.shared, **request} for request in requests], batch_size=self.batch_size)
        except Exception as error:
            if _is_of_the_device(error):
                raise DeviceLost(f'the GPU stopped working ({error}); give the same command again.') from error
            if len(requests) > 1:
                return [self.draw([request])[0] for request in requests]
            return [_refused(error)]
        seconds = (time.perf_counter() - started) / len(requests)
        return [Drawn(output['output_imgs'], output['recipes'], seconds) for output in outputs]


def _is_of_the_device(error: Exception) -> bool:
    """A CUDA error, which every later call in this process would fail with too. A lack of memory is another class."""
    import torch
    lost = getattr(torch, 'AcceleratorError', None)      # newer than the oldest torch that is accepted
    return lost is not None and isinstance(error, lost)


def _refused(error: Exception) -> Refused:
    return Refused(words_of(error), isinstance(error, CartoonError) and error.exit_code == 2)
