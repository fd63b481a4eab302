"""One side's process: loads it, then answers questions, a JSON line each, on stdin and stdout.

    {"do": "draw", "size": 512, "steps": 3, "batch": 1, "options": {}, "keep": "latents.npy"}
    {"do": "peaks"}
    {"do": "cold", ...}     stops at the end of the first denoising step

What a side can't do is an answer too: {"error": sentence}.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.sides import SIDES, Ask
from benchmarks.watch import Watch

PROMPT = 'a portrait painting of a woman'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--side', choices=SIDES, required=True)
    parser.add_argument('--folder', type=Path, required=True)
    parser.add_argument('--device', choices=('cpu', 'cuda'), required=True)
    arguments = parser.parse_args()
    watch = Watch(arguments.device)
    started = time.perf_counter()
    try:
        side = SIDES[arguments.side].load(arguments.folder, arguments.device, watch)
    except Exception as error:     # a backend or a package that isn't there: the run goes on without this side
        return answer({'error': f'{type(error).__name__}: {error}'})
    answer({'load': time.perf_counter() - started, 'runs_as': side.runs_as, 'peak_gib': peak_gib()})
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer(_ANSWERS[question.pop('do')](side, watch, **question))
        except Exception as error:
            answer({'error': f'{type(error).__name__}: {error}'})


def draw(side: Any, watch: Watch, size: int, steps: int, noise: str, batch: int = 1,
         options: dict[str, Any] | None = None, keep: str | None = None) -> dict[str, Any]:
    """Seconds of a whole call and of its parts, and what it used; `keep` gets the final latents in fp32."""
    import numpy as np
    import torch

    given = torch.from_numpy(np.load(noise))[:batch]
    watch.clear()
    if watch.device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    watch.synchronize()
    started, cpu = time.perf_counter(), time.process_time()
    side.draw(Ask(PROMPT, size, steps, given, options or {}))
    watch.synchronize()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    if keep:
        np.save(keep, watch.latents.float().cpu().numpy())
    if batch > 1 and watch.device == 'cuda':
        torch.cuda.empty_cache()     # or what a batch needed would be kept from the sides beside this one
    gpu = {'gpu_gib': torch.cuda.max_memory_allocated() / 2**30} if watch.device == 'cuda' else {}
    return {'seconds': seconds, 'cpu_seconds': cpu, 'steps': len(watch.steps), **watch.seconds(),
            'peak_gib': peak_gib(), **gpu}


def cold(side: Any, watch: Watch, **question: Any) -> None:
    """Answers at the end of the first step, by the clock that all processes share, and ends. text, step: seconds of the
    stages since it was asked, each with the compilation in it, where there is one."""
    asked_at = time.monotonic()

    def first_step() -> None:
        text = watch.seconds()['text']
        now = time.monotonic()
        answer({'first_step_at': now, 'text': text, 'step': now - asked_at - text})
        os._exit(0)
    watch.on_step = first_step
    draw(side, watch, **question)


def peaks(side: Any, watch: Watch, **sizes: int) -> dict[str, list[float]]:
    from benchmarks.peaks import measure
    return measure(watch.device, **sizes)


def peak_gib() -> float:
    """The most memory that this process ever held. On Linux not from resource: ru_maxrss begins with what the parent
    held when it started this process."""
    status = Path('/proc/self/status')
    if status.exists():
        return int(re.search(r'VmHWM:\s+(\d+) kB', status.read_text()).group(1)) / 2**20
    import psutil
    memory = psutil.Process().memory_info()
    return getattr(memory, 'peak_wset', memory.rss) / 2**30     # Windows knows the peak, macOS what is held now


def answer(value: dict[str, Any]) -> None:
    print('@' + json.dumps(value), flush=True)


_ANSWERS = {'draw': draw, 'cold': cold, 'peaks': peaks}


if __name__ == '__main__':
    main()
