"""configuration.json: the names under which the host knows us, and what a model folder's own file says."""
from __future__ import annotations

import json
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
    if not path.is_file():
        return default
    try:
        given = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise BadConfiguration(f'{path} is not a JSON file that can be read ({error}); accepted: a file such as '
                               f'{DEFAULT_PATH}.') from error
    if not isinstance(given, dict):
        raise BadConfiguration(f'{path} holds a {type(given).__name__}; accepted: a JSON object such as '
                               f'{DEFAULT_PATH}.')
    preprocessor = given.get('preprocessor')
    if isinstance(preprocessor, dict) and preprocessor.get('type') == PREPROCESSOR_TYPE:
        default['preprocessor'] = preprocessor
    return default


def preprocessor_options(model_dir: str | Path) -> dict[str, Any]:
    """Keywords for StylePromptPreprocessor: the folder's own, or the style that its place in the cache tells."""
    options = {k: v for k, v in configuration(model_dir)['preprocessor'].items() if k != 'type'}
    style = style_of_path(str(model_dir))
    return options or ({'style': style.name} if style else {})
