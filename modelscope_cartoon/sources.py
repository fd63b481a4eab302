"""What a folder that is to be published is, and what it says of itself: a model, one of the five, or an adapter.

Each kind of source is one function: it puts the model's files in place and returns what the rest is written from.
"""
from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modelscope_cartoon import conversion, mini
from modelscope_cartoon.card import STABLE_DIFFUSION_2_1, Card
from modelscope_cartoon.configuration import preprocessor_options
from modelscope_cartoon.errors import BadConfiguration, InvalidRequest
from modelscope_cartoon.files import write_json
from modelscope_cartoon.folder import ModelFolder
from modelscope_cartoon.hub import hub_model, local_model
from modelscope_cartoon.kinds import ADAPTER, MODEL, public_json, public_recipe, read_json, sort_files
from modelscope_cartoon.styles import get_style, style_of_path, styles

_DIFFUSERS_PARTS = ('unet', 'vae', 'text_encoder', 'tokenizer', 'scheduler')


@dataclass(frozen=True)
class Draft:
    """card: without pictures. preprocessor: its options in configuration.json. left_out: file -> why it stays."""
    card: Card
    preprocessor: dict[str, Any]
    left_out: dict[str, str]
    notes: tuple[str, ...] = ()


def draft(source: Path, target: Path, given: Card) -> Draft:
    """The model's own files of `source` in `target`. `given`: what the publisher says, which goes first."""
    adapter = (source / conversion.ADAPTER_FILE).is_file() and not (source / 'model_index.json').is_file()
    drafted = (_adapter if adapter else _model)(source, target, given)
    return replace(drafted, card=replace(drafted.card, licence=_licence(drafted.card)))


def _model(source: Path, target: Path, given: Card) -> Draft:
    folder = ModelFolder(source)
    files = sort_files(source, MODEL, [path.relative_to(source).as_posix() for path in conversion.files_read(folder)])
    _copy(source, target, files.kept)
    notes = conversion.write_weights(folder, target)
    return Draft(*_known(given, source, source), files.left_out, notes)


def _adapter(source: Path, target: Path, given: Card) -> Draft:
    """As it is where its base is on the hub; merged into its base where that is on this machine alone."""
    base = _base_model(source)
    if base == mini.NAME or os.path.isdir(base):
        return _merged(source, target, given, base)
    files = sort_files(source, ADAPTER)
    _copy(source, target, files.kept)
    given = replace(given, base_model=hub_model(base)[0], relation='adapter')
    return Draft(*_known(given, source, source), files.left_out)


def _merged(source: Path, target: Path, given: Card, base: str) -> Draft:
    folder, files = ModelFolder(local_model(base)), sort_files(source, ADAPTER)
    of_base = sort_files(folder.root, MODEL).kept
    _copy(folder.root, target, [name for name in of_base if not name.startswith(('loras/', 'recipe.json'))])
    _copy(source, target, [name for name in files.kept if not name.endswith('.safetensors')])
    conversion.write_merged(folder, source, target)
    return Draft(*_known(replace(given, fused=True), source, folder.root), files.left_out, (
        f'the base {base!r} is not on the hub, so the LoRA was merged into it, and a full model goes up.',))


def _base_model(source: Path) -> str:
    model = read_json(source / 'configuration.json').get('model')
    base = model.get('base_model') if isinstance(model, dict) else None
    if not isinstance(base, str):
        raise BadConfiguration(f'{source / "configuration.json"} names no base_model; accepted: mini, a hub id or a '
                               'folder, as in "model": {"base_model": "damo/cv_cartoon_stable_diffusion_flat"}.')
    return base


def _known(given: Card, source: Path, base: Path) -> tuple[Card, dict[str, Any]]:
    """The card's facts and the preprocessor's options, from what `source`, its base and the hub ids say."""
    of_five = style_of_path(str(source)) or style_of_path(given.model_id)
    options = {'style': given.style.name} if given.style else preprocessor_options(source)
    if not options and of_five:
        options = {'style': of_five.name}
    style = get_style(options['style']) if 'style' in options else None
    recipe = public_recipe(source / 'recipe.json')
    trained_on = _trained_on(recipe)
    if of_five and not given.fused and not given.relation and trained_on is None:
        origin, base_model = 'cartoon', given.base_model or STABLE_DIFFUSION_2_1
    else:
        is_mini = trained_on == mini.NAME or base.resolve() == mini.path().resolve()
        origin, base_model = 'mini' if is_mini else 'own', given.base_model or (None if is_mini else trained_on)
    card = replace(given, origin=origin, style=style, base_model=base_model, recipe=recipe,
                   styles=tuple(options.get('loras') or options.get('triggers') or ()),
                   trigger=options.get('trigger') or (style.trigger if style else None),
                   relation=given.relation or ('finetune' if base_model else None))
    return card, options


def _trained_on(recipe: dict[str, Any]) -> str | None:
    """mini, or the hub id of one of the five, where training recorded that; other names may be folders."""
    recorded = recipe.get('recipe')
    base = recorded.get('base') if isinstance(recorded, dict) else None
    ids = {name: style.model_id for style in styles().values() for name in (style.name, style.model_id)}
    return base if base == mini.NAME else ids.get(str(base))


def _licence(card: Card) -> str:
    if card.licence:
        return card.licence
    if card.origin == 'cartoon' and card.style:
        return card.style.licence
    if card.origin == 'mini' and not card.recipe:     # as it comes with the package
        return 'Apache-2.0'
    raise InvalidRequest('say under which licence it is published, by its SPDX name: --licence Apache-2.0, MIT, '
                         'CC-BY-4.0, OpenRAIL++-M.')


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if name == 'model_index.json':
            write_json(target / name, _drawing_parts(public_json(source / name)))
        elif name.endswith('config.json'):
            write_json(target / name, public_json(source / name))
        elif name == 'recipe.json':
            write_json(target / name, public_recipe(source / name))
        else:
            shutil.copyfile(source / name, target / name)


def _drawing_parts(index: dict[str, Any]) -> dict[str, Any]:
    """model_index.json without the parts that don't go up, as diffusers writes it for a pipeline that lacks them."""
    parts = {key: [None, None] if isinstance(value, list) and key not in _DIFFUSERS_PARTS else value
             for key, value in index.items()}
    return {**parts, 'requires_safety_checker': False}
