"""Puts the five trained styles into the base: `python -m mini_training.family --styles DIR --model DIR`.

`--styles` holds one adapter folder a style, as `modelscope-cartoon train` writes it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from mini_training.export import write_manifest
from mini_training.subjects import LOOKS
from modelscope_cartoon.publish.kinds import public_recipe

WEIGHTS = 'pytorch_lora_weights.safetensors'
FOLDER = 'loras'
GUIDANCE = 3.0      # a small model is pulled out of its style by Stable Diffusion's usual 7.5 (README.md)


def copy_in_half(source: Path, target: Path) -> None:
    with safe_open(source, 'pt') as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key).half().contiguous() for key in file.keys()}     # noqa: SIM118 (it is no dict)
    target.parent.mkdir(parents=True)
    save_file(tensors, target, metadata)


def add_styles(styles: Path, model: Path) -> None:
    """Built aside and moved in place: the base, its LoRAs, and the configuration that names them."""
    aside = model.with_name(model.name + '.new')
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(model, aside, ignore=shutil.ignore_patterns(FOLDER))
    for look in LOOKS:
        copy_in_half(styles / look / WEIGHTS, aside / FOLDER / look / WEIGHTS)
        recipe = public_recipe(styles / look / 'recipe.json')
        recipe['recipe']['base'] = 'mini'
        (aside / FOLDER / look / 'recipe.json').write_text(json.dumps(recipe, indent=2) + '\n')
    path = aside / 'configuration.json'
    configuration = json.loads(path.read_text())
    configuration['preprocessor'] = {'type': 'cartoon-style-prompt',
                                     'loras': {look: f'{FOLDER}/{look}' for look in LOOKS},
                                     'defaults': {'guidance_scale': GUIDANCE}}
    path.write_text(json.dumps(configuration, indent=2) + '\n')
    write_manifest(aside)
    shutil.rmtree(model)
    aside.rename(model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--styles', type=Path, required=True)
    parser.add_argument('--model', type=Path, required=True)
    args = parser.parse_args()
    add_styles(args.styles, args.model)


if __name__ == '__main__':
    main()
