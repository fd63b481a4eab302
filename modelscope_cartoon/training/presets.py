"""Defaults by size of the base and method, as data: {setting: (value, where it comes from)}."""
from __future__ import annotations

from typing import Any

SMALL_UNET = 100_000_000      # parameters; below it the preset is 'small'

_ATTENTION = ('to_q', 'to_k', 'to_v', 'to_out.0')
LORA_TARGETS: dict[str, tuple[str, ...]] = {
    'attention': _ATTENTION,
    'attention+resnets': (*_ATTENTION, 'proj_in', 'proj_out', 'ff.net.0.proj', 'ff.net.2', 'conv1', 'conv2'),
}
_SD, _CHOSEN = 'diffusers 0.42 examples/dreambooth', 'chosen here, on the embedded model'

_STABLE_DIFFUSION: dict[str, tuple[Any, str]] = {
    'batch_size': (4, _SD + ', --train_batch_size'),
    'snr_gamma': (5.0, 'Hang et al. 2023, section 3.4'),
    'prior_share': (0.5, 'Ruiz et al. 2023: as many class pictures as others in a batch'),
    'prior_count': (100, _SD + ', --num_class_images'),
    'train_text_encoder': (False, _SD),
    'text_encoder_learning_rate': (5e-6, 'diffusers 0.42 examples/advanced_diffusion_training'),
    'crops': (1, 'diffusers examples, --center_crop'),
    'flip': (False, 'diffusers examples, --random_flip (off)'),
    'sample_every': (250, 'chosen here'),
}
# Measured on 60 pictures, every fifth held out, one run each, batch 4: the held-out error fell from 0.2494 in 60 and
# 120 steps to 0.2305 and 0.2283 (attention), 0.2283 and 0.2247 (attention+resnets), 0.2245 and 0.2228 (the text encoder
# too, which never read a trigger before); at three times the rate to 0.2285 and 0.2268, 0.2278 and 0.2236.
# Crops (resampled, so softer) and mirrored pictures cost the style: after 1500 steps with both, 2 and 11 of 32 pictures
# were judged to be flat and clipart, after 400 steps without 23 and 30 (the judge of docs/mini_model.md).
_SMALL: dict[str, tuple[Any, str]] = {
    'batch_size': (8, _CHOSEN), 'snr_gamma': (0.0, 'v-prediction as it is: its weight is SNR + 1 already'),
    'prior_share': (0.375, _CHOSEN), 'prior_count': (64, _CHOSEN), 'crops': (1, _CHOSEN), 'flip': (False, _CHOSEN),
    'sample_every': (200, _CHOSEN), 'train_text_encoder': (True, _CHOSEN),
    'text_encoder_learning_rate': (1e-3, _CHOSEN),
}
PRESETS: dict[tuple[str, str], dict[str, tuple[Any, str]]] = {
    ('stable-diffusion', 'lora'): {
        **_STABLE_DIFFUSION,
        'rank': (16, 'between the 4 of diffusers examples and the 32 usual with kohya sd-scripts'),
        'lora_targets': ('attention', _SD + '/train_dreambooth_lora.py'),
        'steps': (1000, 'Ruiz et al. 2023, section 3.3'),
        'learning_rate': (1e-4, _SD + '/README.md, LoRA'),
        'prior_target': ('picture', 'Ruiz et al. 2023, section 3.3'),
    },
    ('stable-diffusion', 'full'): {
        **_STABLE_DIFFUSION,
        'rank': (16, 'not used'), 'lora_targets': ('attention', 'not used'),
        'steps': (1000, 'Ruiz et al. 2023, section 3.3'),
        'learning_rate': (5e-6, 'Ruiz et al. 2023, section 3.3, for Stable Diffusion'),
        'prior_target': ('picture', 'Ruiz et al. 2023, section 3.3'),
    },
    ('small', 'lora'): {
        **_SMALL,
        'rank': (16, _CHOSEN), 'lora_targets': ('attention+resnets', _CHOSEN), 'steps': (600, _CHOSEN),
        'learning_rate': (1e-3, _CHOSEN), 'prior_target': ('base', _CHOSEN),
    },
    ('small', 'full'): {
        **_SMALL,
        'rank': (16, 'not used'), 'lora_targets': ('attention', 'not used'), 'steps': (600, _CHOSEN),
        'learning_rate': (1e-4, _CHOSEN), 'text_encoder_learning_rate': (1e-4, _CHOSEN),
        'prior_target': ('picture', 'Ruiz et al. 2023, section 3.3'),
    },
}


def preset_of(unet_parameters: int) -> str:
    return 'small' if unet_parameters < SMALL_UNET else 'stable-diffusion'
