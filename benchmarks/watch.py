"""The stop-watch that every side carries: seconds of text encoding, of each denoising step and of decoding."""
from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any


class Watch:
    """On a GPU the stamps are CUDA events, so that looking at the watch doesn't stop the queue of work."""

    def __init__(self, device: str):
        self.device = device
        self.on_step: Callable[[], None] | None = None
        self.clear()

    def clear(self) -> None:
        self.parts: dict[str, list[tuple[Any, Any]]] = {'text': [], 'vae': []}
        self.steps: list[Any] = []
        self.latents: Any = None

    def stamp(self) -> Any:
        if self.device == 'cpu':
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = self.stamp()
        yield
        self.parts[name].append((started, self.stamp()))

    def timed(self, name: str, function: Callable) -> Callable:
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return function(*arguments, **options)
        return timed

    def step(self, latents: Any) -> None:
        """At the end of a denoising step. The last step's latents are the result."""
        self.steps.append(self.stamp())
        self.latents = latents
        if self.on_step:
            self.on_step()

    def follow(self, pipe: Any) -> None:
        """Times what a diffusers pipeline does before and after its loop, and shows no bar."""
        pipe.set_progress_bar_config(disable=True)
        pipe.encode_prompt = self.timed('text', pipe.encode_prompt)
        pipe.vae.decode = self.timed('vae', pipe.vae.decode)

    def seconds(self) -> dict[str, Any]:
        """`step`: each pace between two steps' ends, that is a UNet call from the second on, scheduler included."""
        self.synchronize()
        parts = {name: sum(self._between(*pair) for pair in pairs) if pairs else None
                 for name, pairs in self.parts.items()}
        return {'step': [self._between(a, b) for a, b in zip(self.steps, self.steps[1:])], **parts}

    def synchronize(self) -> None:
        if self.device != 'cpu':
            import torch
            torch.cuda.synchronize()

    def _between(self, start: Any, end: Any) -> float:
        return end - start if self.device == 'cpu' else start.elapsed_time(end) / 1000
