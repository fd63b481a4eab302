"""What presets cost the embedded model: accuracy, distance from `exact`, UNet evaluations and seconds.

    python -m benchmarks.presets --npm DIR --keep DIR          judged as benchmarks.mini_quality judges: with attributes
    python -m benchmarks.presets                               no training data: ten concepts by the tests' reference
    python -m benchmarks.presets --render                      table and plot again, from the JSON alone

Every variant draws the same prompts, whose wording training never saw, with the same seeds, in turn: eight pictures
with each, then the next eight. Evaluations are rows of the UNet, counted as they happen: a guided step has two.
`--npm` is the folder of mini_training's icons and portraits, `--keep` what mini_quality kept there (else made again).
"""
from __future__ import annotations

import argparse
import json
import platform
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.presets_report import write
from benchmarks.quality import short
from benchmarks.quality.embeddings import distances, mirrored
from benchmarks.quality.measures import border_colour, wilson
from modelscope_cartoon import presets
from modelscope_cartoon.files import write_json

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / 'tests' / 'data' / 'mini_reference.npz'
AT_ONCE = 8
EXACT = 'exact'
VARIANTS: dict[str, dict[str, Any]] = {
    **{row.name: {'preset': row.name} for row in presets.ROWS},
    'fast, cache_interval 2': {'preset': 'fast', 'cache_interval': 2},
    'fast, cache_interval 3': {'preset': 'fast', 'cache_interval': 3},
    'UniPC, 10 steps': {'scheduler': 'UniPC', 'num_inference_steps': 10},
    'own scheduler, 20 steps': {'num_inference_steps': 20},
}


class Question(NamedTuple):
    """A request, what must be seen in its picture, and the benchmark's Ask behind it (for the full judge)."""
    request: dict[str, Any]
    asked: dict[str, str]
    ask: Any = None


class Stored:
    """Ten concepts, their grounds, and two styles, by the small reference that the tests have: no training data."""
    name = 'tests/data/mini_reference.npz: one of ten concepts, one of nine grounds, one of five styles'

    def __init__(self) -> None:
        self.reference = np.load(REFERENCE)

    def questions(self, count: int) -> list[Question]:
        texts = {word: f'a picture of {word} on {ground} background' for word, ground in short.TEN.items()}
        found = []
        for i in range(count):
            word, other = tuple(short.TEN)[i % 10], i % 5 == 4     # style alone is judged in the other look
            style = short.OTHER_LOOK if other else short.LOOK
            seen = {} if other else {'concept': word, 'background': short.TEN[word].split()[1]}
            found.append(Question({'text': texts[word], 'style': style, 'seed': 1000 + i}, seen | {'style': style}))
        return found

    def labels(self, questions: Sequence[Question], pictures: np.ndarray) -> dict[str, np.ndarray]:
        apart = np.minimum(*(distances(short.vectors(some), self.reference['concepts'].astype(np.float32))
                             for some in (pictures, mirrored(pictures))))
        borders = distances(np.stack([border_colour(p) for p in pictures]),
                            self.reference['grounds'].astype(np.float32))
        return {'concept': np.array(tuple(short.TEN))[apart.argmin(1)],
                'background': self.reference['colours'][borders.argmin(1)],
                'style': short.style_of(pictures, self.reference)}


class Full:
    """Concepts, portraits with their attributes, and styles, as benchmarks.mini_quality judges them."""
    name = 'benchmarks.mini_quality: one of 81 concepts, attributes of portraits and grounds, one of five styles'

    def __init__(self, npm: Path, keep: Path | None, pipe: Any) -> None:
        from benchmarks.mini_quality import vae_digest
        from benchmarks.quality.judge import Judge

        self.judge = Judge(npm, keep, pipe.pipeline.vae, vae_digest(pipe), quick=False)

    def questions(self, count: int) -> list[Question]:
        from benchmarks.quality import prompts

        portraits = count * 2 // 5
        asks = [*prompts.concepts('concepts', count - portraits), *prompts.portraits('portraits', portraits)]
        return [Question(ask.request(), {**ask.asked, 'style': ask.look}, ask) for ask in asks]

    def labels(self, questions: Sequence[Question], pictures: np.ndarray) -> dict[str, np.ndarray]:
        from benchmarks.quality.figures import SAME
        from benchmarks.quality.judge import HEADLINE

        found = self.judge.labels([question.ask for question in questions], pictures)
        return {**found, 'concept': found[SAME.format(HEADLINE)]}


@contextmanager
def watching(pipe: Any) -> Iterator[dict[str, Any]]:
    """Rows of the UNet in whole and in shallow calls, and the latents that the autoencoder decodes."""
    seen: dict[str, Any] = {'rows': 0, 'whole': 0, 'latents': []}
    unet, vae = pipe.pipeline.unet, pipe.pipeline.vae

    def count(name: str) -> Any:
        return lambda module, given: seen.update({name: seen[name] + len(given[0])})
    handles = [unet.conv_in.register_forward_pre_hook(count('rows')),
               unet.mid_block.register_forward_pre_hook(count('whole')),
               vae.decoder.register_forward_pre_hook(lambda module, given: seen['latents'].append(given[0]))]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class Drawn:
    """What one variant has drawn so far."""

    def __init__(self) -> None:
        self.pictures: dict[int, np.ndarray] = {}
        self.latents: dict[int, np.ndarray] = {}
        self.seconds: list[float] = []
        self.whole, self.shallow = 0, 0

    def add(self, pipe: Any, questions: Sequence[Question], places: Sequence[int], settings: dict[str, Any]) -> None:
        requests = [questions[i].request | settings | {'output_type': 'rgb'} for i in places]
        with watching(pipe) as seen:
            started = time.perf_counter()
            outputs = pipe(requests, batch_size=AT_ONCE)
            seconds = (time.perf_counter() - started) / len(places)
        if len(places) == AT_ONCE or not self.seconds:     # a batch of a few is dearer a picture
            self.seconds.append(seconds)
        self.whole, self.shallow = self.whole + seen['whole'], self.shallow + seen['rows'] - seen['whole']
        latents = torch.cat(seen['latents']).float().numpy()
        assert len(latents) == len(places), 'prompts of different length: their order is lost'
        self.pictures |= {i: output['output_imgs'][0] for i, output in zip(places, outputs)}
        self.latents |= dict(zip(places, latents))

    def stacked(self, what: str) -> np.ndarray:
        return np.stack([getattr(self, what)[i] for i in sorted(self.pictures)])


def draw_all(pipe: Any, questions: Sequence[Question], variants: Sequence[str]) -> dict[str, Drawn]:
    drawn = {name: Drawn() for name in variants}
    pipe([question.request | {'num_inference_steps': 4} for question in questions[:AT_ONCE]], batch_size=AT_ONCE)
    for places in batches(questions):
        for name, one in drawn.items():
            one.add(pipe, questions, places, VARIANTS[name])
        print(f'{len(one.pictures)} of {len(questions)}', flush=True)
    return drawn


def batches(questions: Sequence[Question]) -> Iterator[list[int]]:
    """Places of pictures that share their style, AT_ONCE of them."""
    styles: dict[str, list[int]] = defaultdict(list)
    for i, question in enumerate(questions):
        styles[question.request['style']].append(i)
    for places in styles.values():
        for start in range(0, len(places), AT_ONCE):
            yield places[start:start + AT_ONCE]


def answers(questions: Sequence[Question], labels: dict[str, np.ndarray], truth: dict[str, np.ndarray] | None = None,
            ) -> dict[str, list[bool]]:
    """Right or wrong, by kind; with `truth`: whether it is what was seen there."""
    found: dict[str, list[bool]] = defaultdict(list)
    for i, question in enumerate(questions):
        for name, asked in question.asked.items():
            kind = name if name in ('concept', 'style') else 'attributes'
            found[kind].append(bool(labels[name][i] == (asked if truth is None else truth[name][i])))
    return found


def measured(questions: Sequence[Question], one: Drawn, exact: Drawn, labels: dict[str, np.ndarray],
             exact_labels: dict[str, np.ndarray]) -> dict[str, Any]:
    pictures, latents = one.stacked('pictures').astype(np.float32), one.stacked('latents')
    reference = exact.stacked('latents')
    same = [*chain.from_iterable(answers(questions, labels, exact_labels).values())]
    return {'accuracy': {kind: share(right) for kind, right in answers(questions, labels).items()},
            'same answer as exact': share(same),
            'pixel distance': round(float(np.abs(pictures - exact.stacked('pictures')).mean()), 3),
            'latent distance': round(float(np.linalg.norm(latents - reference) / np.linalg.norm(reference)), 4),
            'evaluations': {'whole': one.whole / len(pictures), 'shallow': one.shallow / len(pictures)},
            'seconds': dict(zip(('low', 'median', 'high'), np.percentile(one.seconds, (25, 50, 75)).round(4).tolist()))}


def share(right: Sequence[bool]) -> dict[str, Any]:
    low, high = wilson(sum(right), len(right))
    return {'share': round(sum(right) / len(right), 4), 'low': round(low, 4), 'high': round(high, 4),
            'count': len(right)}


def run(args: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.mini_quality import weights_digest
    from modelscope_cartoon import load_pipeline

    pipe = load_pipeline('mini', device='cpu')
    judge = Full(args.npm, args.keep, pipe) if args.npm else Stored()
    questions = judge.questions(args.pictures)
    drawn = draw_all(pipe, questions, list(VARIANTS))
    labels = {name: judge.labels(questions, one.stacked('pictures')) for name, one in drawn.items()}
    return {'model': weights_digest(Path(pipe.model.model_dir))[:12], 'judge': judge.name, 'pictures': len(questions),
            'date': time.strftime('%Y-%m-%d'), 'machine': platform.processor() or platform.machine(),
            'threads': torch.get_num_threads(), 'torch': torch.__version__, 'settings': VARIANTS,
            'variants': {name: measured(questions, one, drawn[EXACT], labels[name], labels[EXACT])
                         for name, one in drawn.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--npm', type=Path, help='folder with node_modules and portraits.mjs')
    parser.add_argument('--keep', type=Path, help="mini_quality's kept pictures and vectors")
    parser.add_argument('--pictures', type=int, default=120, help='drawn with each variant')
    parser.add_argument('--json', type=Path, default=ROOT / 'benchmarks' / 'results' / 'presets_mini.json')
    parser.add_argument('--plot', type=Path, default=ROOT / 'docs' / 'pictures' / 'presets.png')
    parser.add_argument('--docs', type=Path, default=ROOT / 'docs' / 'presets.md', help='gets the table')
    parser.add_argument('--render', action='store_true', help='draw nothing, write table and plot again')
    args = parser.parse_args()
    if not args.render:
        write_json(args.json, run(args))
    write(json.loads(args.json.read_text(encoding='utf-8')), args.docs, args.plot)


if __name__ == '__main__':
    main()
