"""configuration.json: the names under which the host knows us, and what a model folder's own file says."""
from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelscope_cartoon.errors import BadConfiguration
from modelscope_cartoon.styles import style_of_path

TASK = 'text-to-image-synthesis'
MODEL_TYPE = PIPELINE_TYPE = 'cartoon-stable-diffusion'
PREPROCESSOR_TYPE = 'cartoon-style-prompt'
DEFAULT_PATH = Path(__file__).with_name('configuration.json')
_NAME = 'configuration.json'


def configuration(model_dir: str | Path) -> dict[str, Any]:
    """The folder's configuration.json with our types, or ours where it has none. BadConfiguration names the file."""
    path = Path(model_dir, _NAME)
    default = json.loads(DEFAULT_PATH.read_text(encoding='utf-8'))
    preprocessor = _given(path).get('preprocessor')
    if isinstance(preprocessor, dict) and preprocessor.get('type') == PREPROCESSOR_TYPE:
        default['preprocessor'] = preprocessor
    return default


def _given(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        given = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise BadConfiguration(f'{path} is not a JSON file that can be read ({error}); accepted: a file such as '
                               f'{DEFAULT_PATH}.') from error
    if not isinstance(given, dict):
        raise BadConfiguration(f'{path} holds a {type(given).__name__}; accepted: a JSON object such as '
                               f'{DEFAULT_PATH}.')
    return given


def base_model(model_dir: str | Path) -> str | None:
    """The model that an adapter folder's LoRA belongs to; None for a folder that is a whole model."""
    if Path(model_dir, 'model_index.json').is_file():
        return None
    model = _given(Path(model_dir, _NAME)).get('model')
    base = model.get('base_model') if isinstance(model, dict) else None
    if base is not None and not (isinstance(base, str) and base.strip()):
        raise BadConfiguration(f'{Path(model_dir, _NAME)}: base_model is {base!r}; accepted: mini, a style, a hub id, '
                               'or a folder.')
    return base


def lora_folders(model_dir: str | Path, given: Mapping[str, str] | None) -> dict[str, str]:
    """The folders of the model's own LoRAs by name; `given` has them relative to `model_dir`, inside it."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(x, str) and x.strip() for x in (*given, *given.values())):
        raise BadConfiguration(f'loras is {given!r}; accepted: an object of names and folders inside the model folder.')
    root = Path(model_dir).resolve()
    for name, relative in given.items():
        if '\0' in relative or root not in (root / relative).resolve().parents:
            raise BadConfiguration(f'{model_dir}: the LoRA {name!r} is at {relative!r}, outside the model folder, '
                                   'which is not accepted.')
        if not os.path.exists(root / relative):
            raise BadConfiguration(f'{model_dir}: the LoRA {name!r} should be at {relative!r} and is not there; '
                                   'download the model again.')
    return {name: str(Path(model_dir, relative)) for name, relative in given.items()}


def preprocessor_options(model_dir: str | Path, adapter: str | Path | None = None) -> dict[str, Any]:
    """Keywords for StylePromptPreprocessor: the folder's own, or the style that its place in the cache tells.

    adapter: the folder of a LoRA that is always on; its own options stand over the model's.
    """
    style = style_of_path(str(model_dir))
    options = _options(model_dir) or ({'style': style.name} if style else {})
    if adapter is None:
        return options
    own = _options(adapter)
    if 'loras' in own:
        raise BadConfiguration(f'{Path(adapter, _NAME)} is a LoRA\'s and lists loras, which only a whole model has; '
                               'take them out.')
    return {**options, **own, 'adapter': str(adapter)}


def _options(folder: str | Path) -> dict[str, Any]:
    return {key: value for key, value in configuration(folder)['preprocessor'].items() if key != 'type'}
