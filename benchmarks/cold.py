"""Cold starts: from the start of a process to the end of its first denoising step, and what an import costs."""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

from benchmarks.goals import COLD
from benchmarks.runner import ROOT, Bench, Process, say

IMPORTS = ('modelscope', 'modelscope_cartoon', 'modelscope.pipelines',
           'diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion')


def measure(bench: Bench, size: int, repeats: int, prepared: bool) -> None:
    """Upstream, ours with nothing kept on disk and, where `prepare` went through, ours with what it left."""
    say('cold starts')
    with tempfile.TemporaryDirectory(prefix='benchmark-cache-') as empty:
        starts(bench, {title: (side, {'MODELSCOPE_CARTOON_CACHE': empty} if 'plain' in title else {})
                       for title, side in COLD.items() if prepared or 'prepared' not in title}, size, repeats)
    imports(bench, max(3, repeats))


def starts(bench: Bench, variants: dict[str, tuple[str, dict[str, str]]], size: int, repeats: int) -> None:
    """`variants`: what it is called -> the side, and environment variables. In turn, after one start that fills the
    page cache; the samples are seconds."""
    samples, parts = bench.result.setdefault('cold', {}), bench.result.setdefault('cold parts', {})
    noise = bench.noise(size, 1)
    for turn in range(-1, repeats):
        for title, (name, environment) in variants.items():
            if title in bench.result['left out']:
                continue
            started = time.monotonic()
            process = Process(name, bench.model, bench.device, environment)
            answer = process.read()
            if 'error' not in answer:
                answer = process.ask('cold', size=size, steps=1, noise=noise)
            process.close()
            if not bench.failed(title, answer) and turn >= 0:
                total = answer['first_step_at'] - started
                samples.setdefault(title, []).append(total)
                parts.setdefault(title, []).append({'text': answer['text'], 'step': answer['step'],
                                                    'load': total - answer['text'] - answer['step']})
                say(f'  cold start, {title}: {samples[title][-1]:.1f} s')


def imports(bench: Bench, repeats: int) -> None:
    """Seconds inside the interpreter, in turn, after one of each that fills the page cache."""
    code = 'import time; started = time.perf_counter(); import {}; print(time.perf_counter() - started)'
    samples = bench.result['imports'] = {name: [] for name in IMPORTS}
    for turn in range(-1, repeats):
        for name in IMPORTS:
            run = subprocess.run([sys.executable, '-c', code.format(name)], cwd=ROOT, capture_output=True, text=True,
                                 check=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
            if turn >= 0:
                samples[name].append(float(run.stdout.splitlines()[-1]))


def prepare(bench: Bench, backend: str = 'auto') -> bool:
    """`modelscope-cartoon prepare` of the model for `backend`; False where it can't, with its own words kept."""
    say(f'preparing for backend {backend}')
    started = time.perf_counter()
    run = subprocess.run(
        [sys.executable, '-m', 'modelscope_cartoon.cli', 'prepare', str(bench.model.folder), '--backend', backend,
         '--device', 'gpu' if bench.device == 'cuda' else 'cpu'],
        cwd=ROOT, text=True, capture_output=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    words = (run.stderr.strip() or run.stdout.strip() or 'no words').splitlines()[-1]
    if run.returncode:
        bench.failed('prepared', {'error': f'prepare for {backend} ended with {run.returncode}: {words}'})
        return False
    bench.result.setdefault('prepare', {})[backend] = {'seconds': time.perf_counter() - started, 'words': run.stdout}
    return True
