"""Sides at work: groups that fit into memory, processes, and rounds in which each side draws in turn."""
from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.models import Model
from benchmarks.sides import SIDES

BASE_GIB = 0.6      # Python, torch and diffusers in each process, before any weights
FIRST = 'U'         # in every group, so that each side has been drawn in turn with it
ROOT = Path(__file__).parent.parent

Answer = dict[str, Any]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def plan(names: list[str], budget_gib: float, fp32_gib: float) -> list[list[str]]:
    """`names` in groups whose memory, guessed, fits `budget_gib`; each has FIRST where that is measured at all."""
    def gib(group: list[str]) -> float:
        return sum(SIDES[name].need * fp32_gib + BASE_GIB for name in group)

    first = [FIRST] if FIRST in names else []
    groups: list[list[str]] = []
    for name in names:
        if name == FIRST:
            continue
        if not groups or gib([*groups[-1], name]) > budget_gib:
            groups.append(list(first))
        groups[-1].append(name)
    return groups or [first]


class Process:
    """One side. An answer with 'error' is the side's own sentence; a side that ends early is one too."""

    def __init__(self, name: str, model: Model, device: str, environment: dict[str, str] | None = None):
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'benchmarks.serve', '--side', name, '--folder', str(model.folder),
             '--device', device],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, 'TQDM_DISABLE': '1', 'PYTHONPATH': str(ROOT), **(environment or {})})

    def read(self) -> Answer:
        for line in self._process.stdout:
            if line.startswith('@'):
                return json.loads(line[1:])
        return {'error': f'it ended with exit code {self._process.wait()}; its own words are above.'}

    def ask(self, do: str, **question: Any) -> Answer:
        try:
            self._process.stdin.write(json.dumps({'do': do, **question}) + '\n')
            self._process.stdin.flush()
        except BrokenPipeError:
            pass     # read() says how it ended
        return self.read()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


class Bench:
    """A result in the making. What a side couldn't do is said at once and kept in result['left out']."""

    def __init__(self, model: Model, device: str, work: Path, result: dict[str, Any]):
        self.model, self.device, self.work, self.result = model, device, work, result
        result.update({'sides': {}, 'runs': [], 'left out': {}, 'groups': []})

    @contextlib.contextmanager
    def opened(self, names: list[str]) -> Iterator[dict[str, Process]]:
        """The sides of one group, loaded one after the other; those that can't be are left out."""
        processes: dict[str, Process] = {}
        try:
            for name in names:
                process = Process(name, self.model, self.device)
                processes[name] = process
                loaded = process.read()
                if self.failed(name, loaded):
                    processes.pop(name).close()
                    continue
                say(f'  {name}: {loaded["runs_as"]}, loaded in {loaded["load"]:.1f} s')
                side = self.result['sides'].setdefault(name, {'title': SIDES[name].title, 'ours': SIDES[name].ours,
                                                              'runs_as': loaded['runs_as'], 'load': []})
                side['load'].append(loaded['load'])
            self.result['groups'].append(list(processes))
            yield processes
        finally:
            for process in processes.values():
                process.close()

    def failed(self, name: str, answer: Answer, what: str = 'loading') -> bool:
        if 'error' in answer:
            say(f'  {name} is left out ({what}): {answer["error"]}')
            self.result['left out'][name if what == 'loading' else f'{name}, {what}'] = answer['error']
        return 'error' in answer

    def noise(self, size: int, batch: int) -> str:
        """The file with everybody's initial latents. Of a smaller batch they are the first of a bigger one."""
        import numpy as np

        from benchmarks.models import config

        path = self.work / f'noise-{size}-{batch}.npy'
        vae = config(self.model.folder, 'vae')
        latent = size // 2 ** (len(vae['block_out_channels']) - 1)
        shape = (batch, vae['latent_channels'], latent, latent)
        np.save(path, np.random.default_rng(self.result['settings']['seed']).standard_normal(shape, dtype=np.float32))
        return str(path)

    def run(self, processes: dict[str, Process], kind: str, size: int, steps: int, repeats: int, batch: int = 1,
            options: dict[str, Any] | None = None, rarely: tuple[str, ...] = (), warm: int = 1) -> None:
        """`repeats` rounds, in each of which every side draws once; before them, `warm` short pictures each.
        `rarely`: sides that draw in every other round only. The samples join the run of the same settings. steps 0: as
        many as the preset says; four warm it up, with guidance and without, whole and reused."""
        run = self._entry(kind, size, steps, batch, options or {})
        question = {'size': size, 'batch': batch, 'options': options, 'noise': self.noise(size, batch)}
        able = dict(processes)
        for turn in range(-warm, repeats):
            for name in list(able):
                if turn % 2 and turn > 0 and name in rarely:
                    continue
                answer = able[name].ask('draw', **question, steps=(min(steps, 2) or 4) if turn < 0 else steps,
                                        keep=str(self.latents(name, kind, size, batch)))
                if self.failed(name, answer, f'{kind}, {size} px, batch {batch}'):
                    able.pop(name)
                elif turn >= 0:
                    run['samples'].setdefault(name, []).append({'group': len(self.result['groups']), **answer})
            if not able:
                return
            if turn >= 0:
                say(f'  {kind} {size} px, batch {batch}, round {turn + 1} of {repeats}: ' + ', '.join(
                    f'{name} {run["samples"][name][-1]["seconds"]:.1f} s'
                    for name in able if run['samples'].get(name)))

    def _entry(self, kind: str, size: int, steps: int, batch: int, options: dict[str, Any]) -> dict[str, Any]:
        key = {'kind': kind, 'size': size, 'steps': steps, 'batch': batch, 'options': options}
        for run in self.result['runs']:
            if {name: run[name] for name in key} == key:
                return run
        self.result['runs'].append({**key, 'samples': {}, 'errors': {}})
        return self.result['runs'][-1]

    def peak_sizes(self) -> dict[str, int]:
        """Smaller products for a model that is there for tests, which shouldn't take minutes."""
        return {} if self.model.fp32_gib > 0.05 else {'edge': 256, 'channels': 16, 'pixels': 16}

    def latents(self, name: str, kind: str, size: int, batch: int) -> Path:
        return self.work / f'{name}-{kind}-{size}-{batch}.npy'.replace(' ', '-')

    def compare(self, reference: str = 'D32') -> None:
        """||a - b|| / ||b|| of the exact runs' final latents, b the reference's; it has drawn each of them once."""
        import numpy as np

        for run in self.result['runs']:
            b = self.latents(reference, run['kind'], run['size'], run['batch'])
            if run['kind'] != 'exact' or not b.exists():
                continue
            expected = np.load(b)
            for name in run['samples']:
                difference = np.load(self.latents(name, 'exact', run['size'], run['batch'])) - expected
                run['errors'][name] = float(np.linalg.norm(difference) / np.linalg.norm(expected))
