"""A recipe as the pipeline gives it, to change a part of."""
from __future__ import annotations

import copy
from typing import Any

RECIPE: dict[str, Any] = {
    'schema': 1, 'made_by': 'modelscope-cartoon 0.1.0', 'date': '2026-11-25T01:20:00Z',
    'request': {'text': 'a cat', 'negative_prompt': 'blurry', 'style': None, 'trigger': True, 'lora': [], 'seed': 42,
                'height': 64, 'width': 128, 'preset': 'exact', 'num_inference_steps': 20, 'guidance_scale': 7.5,
                'guidance_interval': None, 'guidance_rescale': 0.0, 'clip_skip': None, 'eta': 0.0, 'scheduler': None,
                'cache_interval': 1},
    'used': {'prompt': 'a cat', 'negative_prompt': 'blurry', 'loras': [],
             'scheduler': {'class': 'EulerAncestralDiscreteScheduler', 'config': {'beta_start': 0.00085}}},
    'model': {'id': 'mini', 'revision': None, 'weights_hash': '0123456789abcdef'},
    'machine': {'backend': 'torch', 'dtype': 'float32', 'device': 'cpu', 'threads': 1, 'noise': 'cpu', 'batch_size': 1},
    'versions': {'modelscope-cartoon': '0.1.0', 'torch': '2.13.0', 'diffusers': '0.42.1', 'transformers': '5.23.0',
                 'modelscope': '1.40.2'},
    'pixels_sha256': '0' * 64}


def recipe(**parts: Any) -> dict[str, Any]:
    """RECIPE with `parts`; a dict stands over the part's own keys."""
    made = copy.deepcopy(RECIPE)
    for key, value in parts.items():
        made[key] = {**made[key], **value} if isinstance(value, dict) else value
    return made
