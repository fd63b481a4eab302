"""Writes the trained parts as a diffusers folder: `python -m mini_training.export --work W --weights F --to DIR`."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from mini_training import autoencoder
from mini_training.captions import LENGTH
from mini_training.denoiser import Denoiser
from mini_training.subjects import LOOKS

HERE = Path(__file__).parent
MANIFEST = 'manifest.json'


def build_pipeline(work: Path, weights: Path) -> StableDiffusionPipeline:
    denoiser = Denoiser(work)
    denoiser.load_state_dict(torch.load(weights, weights_only=True))
    vae = autoencoder.build()
    vae.load_state_dict(torch.load(work / 'vae.pt', weights_only=True))
    return StableDiffusionPipeline(
        vae=vae, text_encoder=denoiser.text_encoder, unet=denoiser.unet, scheduler=denoiser.scheduler,
        tokenizer=CLIPTokenizer.from_pretrained(work / 'tokenizer', model_max_length=LENGTH),
        safety_checker=None, feature_extractor=None, image_encoder=None, requires_safety_checker=False,
    )


def declare_float32(folder: Path) -> None:
    """transformers loads by the declared type, diffusers in float32: without this the two halves would not fit."""
    path = folder / 'text_encoder' / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'dtype': 'float32'}, indent=2) + '\n')


def write_configuration(folder: Path) -> None:
    configuration = {
        'framework': 'pytorch', 'task': 'text-to-image-synthesis', 'model': {'type': 'cartoon-stable-diffusion'},
        'preprocessor': {'type': 'cartoon-style-prompt', 'triggers': LOOKS},
        'pipeline': {'type': 'cartoon-stable-diffusion'},
    }
    (folder / 'configuration.json').write_text(json.dumps(configuration, indent=2) + '\n')


def write_manifest(folder: Path) -> None:
    """The sha256 of every file but the manifest itself."""
    paths = sorted(path for path in folder.rglob('*') if path.is_file() and path.name != MANIFEST)
    sums = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    (folder / MANIFEST).write_text(json.dumps({'files': sums}, indent=2) + '\n')


def export(work: Path, weights: Path, folder: Path) -> None:
    """Built aside and moved in place, so that nobody loads half a model."""
    aside = folder.with_name(folder.name + '.new')
    shutil.rmtree(aside, ignore_errors=True)
    pipeline = build_pipeline(work, weights).to(torch.float16)
    pipeline.save_pretrained(aside, safe_serialization=True)
    for name in ('vocab.json', 'merges.txt'):
        shutil.copy(work / 'tokenizer' / name, aside / 'tokenizer' / name)
    shutil.copy(work / 'words.txt', aside)
    shutil.copy(HERE / 'NOTICE', aside / 'NOTICE')
    shutil.copy(HERE / 'card.md', aside / 'README.md')
    declare_float32(aside)
    write_configuration(aside)
    write_manifest(aside)
    for path in aside.rglob('*'):
        path.chmod(0o755 if path.is_dir() else 0o644)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work', type=Path, required=True)
    parser.add_argument('--weights', type=Path, required=True)
    parser.add_argument('--to', type=Path, required=True)
    args = parser.parse_args()
    export(args.work, args.weights, args.to)


if __name__ == '__main__':
    main()
