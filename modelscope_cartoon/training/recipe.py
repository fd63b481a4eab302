"""Recipe: every setting of a training run, with its default, where that comes from, and its check.

    Recipe.of(base='mini', trigger='sks style', steps=800)      an unknown or wrong setting is an InvalidRequest
    Recipe.of(**json.loads(text))                               what `recipe.settings()` gave
    recipe.completed('small')                                   settings left None get the preset's value

The command line's options, the docs and recipe.json are read from here.
"""
from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from modelscope_cartoon import checks
from modelscope_cartoon.errors import InvalidRequest
from modelscope_cartoon.names import look_up, refuse_unknown
from modelscope_cartoon.prompt import clean, with_trigger
from modelscope_cartoon.training.presets import LORA_TARGETS, PRESETS

SCHEDULES = ('cosine', 'linear', 'constant')
METHODS = ('lora', 'full')
PRIOR_TARGETS = ('base', 'picture')
PRECISIONS = ('auto', 'float32', 'bfloat16', 'float16')


def _whole(least: int, most: int) -> Callable:
    return lambda key, value: checks.whole(key, value, least, most)


def _number(least: float, most: float) -> Callable:
    return lambda key, value: checks.number(key, value, least, most)


def _one_of(*names: str) -> Callable:
    return lambda key, value: look_up(key, value, {name: name for name in names})


def _text(key: str, value: Any) -> str:
    return checks.text(key, value)[0]


def _texts(key: str, value: Any) -> tuple[str, ...]:
    return checks.text(key, value) if value else ()


def _names(key: str, value: Any) -> tuple[str, ...]:
    return tuple(value.split(',')) if isinstance(value, str) else tuple(value)


def _caption(key: str, value: Any) -> str:
    text = _text(key, value)
    try:
        text.format(trigger='')
    except (LookupError, ValueError) as error:
        raise InvalidRequest(f'{key} is {text!r}; accepted: text in which only {{trigger}} stands in braces.'
                             ) from error
    return text


def _setting(kind: type, default: Any, check: Callable, meaning: str, source: str = '') -> Any:
    """default None: the preset's, by the size of the base and the method."""
    return field(default=default, metadata={'kind': kind, 'check': check, 'meaning': meaning, 'source': source})


@dataclass(frozen=True)
class Recipe:
    base: str = _setting(str, 'mini', _text, 'the model to start from: mini, a style, a hub id, a folder')
    trigger: str = _setting(str, 'sks style', _text, "the words that call the new style ('' for none)",
                            'the trigger of the five published styles')
    caption: str = _setting(str, '{trigger}, a picture', _caption, 'the caption of pictures that have none')
    name: str = _setting(str, '', _text, "the style's name in its card and files; default: the output folder's")

    method: str = _setting(str, 'lora', _one_of(*METHODS), 'lora: a small file beside the base; full: every weight',
                           'Hu et al. 2021, LoRA')
    rank: int | None = _setting(int, None, _whole(1, 512), 'rank of the LoRA')
    alpha: float | None = _setting(float, None, _number(1e-3, 1024), "the LoRA's scale times its rank")
    lora_targets: str | None = _setting(str, None, _one_of(*LORA_TARGETS), f'layers: {", ".join(LORA_TARGETS)}')
    lora_dropout: float = _setting(float, 0.0, _number(0, 0.9), 'dropout before the LoRA', 'peft LoraConfig')
    train_text_encoder: bool | None = _setting(bool, None, checks.truth, 'train the text encoder too')

    steps: int | None = _setting(int, None, _whole(1, 10**6), 'optimizer steps')
    batch_size: int | None = _setting(int, None, _whole(1, 4096), 'pictures a step, over all processes together')
    accumulation: int = _setting(int, 1, _whole(1, 4096), 'pieces that a batch is computed in, to save memory')
    learning_rate: float | None = _setting(float, None, _number(0, 1), 'of the UNet')
    text_encoder_learning_rate: float | None = _setting(float, None, _number(0, 1), 'of the text encoder')
    lr_schedule: str = _setting(str, 'cosine', _one_of(*SCHEDULES), 'how the rate falls', 'Loshchilov & Hutter 2017')
    warmup_steps: int = _setting(int, 20, _whole(0, 10**6), 'steps in which the rate rises', 'chosen here')
    weight_decay: float = _setting(float, 0.01, _number(0, 1), "AdamW's", 'diffusers examples, --adam_weight_decay')
    max_grad_norm: float = _setting(float, 1.0, _number(1e-6, 1e6), 'gradients are scaled down to it',
                                    'diffusers examples, --max_grad_norm')
    ema: float = _setting(float, 0.0, _number(0, 0.99999), 'decay of a moving average of the weights; 0: none',
                          'diffusers examples/text_to_image, --use_ema (off)')
    seed: int = _setting(int, 0, _whole(0, checks.SEED_LIMIT - 1), 'of everything that is drawn at random')

    snr_gamma: float | None = _setting(float, None, _number(0, 1000), 'min-SNR weighting; 0: none')
    offset_noise: float = _setting(float, 0.0, _number(0, 1), 'strength of offset noise; 0: none',
                                   'Guttenberg 2023 (0.1); off, as in diffusers')
    caption_dropout: float = _setting(float, 0.0, _number(0, 1), 'share of pictures trained without their caption',
                                      'Ho & Salimans 2022 (0.1); off: what no caption gives shall stay the base\'s')

    prior_share: float | None = _setting(float, None, _number(0, 0.9), "share of a batch that keeps the base's own "
                                         'pictures; 0: none')
    prior_weight: float = _setting(float, 1.0, _number(0, 100), 'weight of that share', 'Ruiz et al. 2023, lambda = 1')
    prior_target: str | None = _setting(str, None, _one_of(*PRIOR_TARGETS),
                                        "picture: DreamBooth's loss; base: the base's own prediction (LoRA only)")
    prior_count: int | None = _setting(int, None, _whole(1, 10**5), 'class pictures, drawn by the base')
    prior_prompts: tuple[str, ...] = _setting(tuple, (), _texts, "prompts of the class pictures; default: the "
                                              'captions without the trigger')
    prior_pictures: str = _setting(str, '', _text, 'a folder of class pictures, instead of drawing them')

    resolution: int | None = _setting(int, None, checks.size, "in pixels; default: the base's own")
    crops: int | None = _setting(int, None, _whole(1, 64), 'crops of each picture; the first is the middle')
    flip: bool | None = _setting(bool, None, checks.truth, 'mirrored pictures too')
    precision: str = _setting(str, 'auto', _one_of(*PRECISIONS), 'auto: bfloat16 or float16 on a GPU, float32 on a CPU')
    gradient_checkpointing: bool = _setting(bool, False, checks.truth, 'less memory, a third slower')

    checkpoint_every: int = _setting(int, 200, _whole(1, 10**6), 'steps between checkpoints')
    sample_every: int | None = _setting(int, None, _whole(0, 10**6), 'steps between sample pictures; 0: none')
    sample_prompts: tuple[str, ...] = _setting(tuple, (), _texts, 'default: some captions, with and without trigger')
    sample_steps: int = _setting(int, 20, _whole(1, 1000), 'denoising steps of a sample and of a class picture')
    sample_guidance: float = _setting(float, 5.0, _number(0, 50), 'guidance_scale of both')
    trackers: tuple[str, ...] = _setting(tuple, (), _names, "tensorboard, wandb, or any other of accelerate's")

    @classmethod
    def of(cls, **settings: Any) -> Recipe:
        """A checked recipe; None means the default."""
        known = {f.name: f.metadata['check'] for f in fields(cls)}
        refuse_unknown('setting', settings, known)
        return cls(**{key: known[key](key, value) for key, value in settings.items() if value is not None})

    def completed(self, preset: str) -> Recipe:
        """With the preset's value where a setting is None."""
        row = PRESETS[preset, self.method]
        recipe = replace(self, **{key: value for key, (value, _) in row.items() if getattr(self, key) is None})
        recipe = replace(recipe, alpha=recipe.rank if recipe.alpha is None else recipe.alpha)
        recipe._check_together()
        return recipe

    def _check_together(self) -> None:
        if self.method == 'full' and self.prior_target == 'base' and self.prior_share:
            raise InvalidRequest("prior_target 'base' needs the base beside what is trained, which method 'full' does "
                                 "not keep; use prior_target='picture'.")
        if self.prior_share and self.prior_in_batch in (0, self.batch_size):
            raise InvalidRequest(f'a batch of {self.batch_size} has no room for a prior_share of {self.prior_share}; '
                                 'use a larger batch_size, or prior_share=0.')

    @property
    def prior_in_batch(self) -> int:
        return round(self.batch_size * self.prior_share)

    def caption_of(self, text: str | None) -> str:
        """The caption to train with: `text` with the trigger in front, or the template."""
        if text is None:
            return clean(self.caption.format(trigger=self.trigger)).strip(', ')
        return with_trigger(clean(text), self.trigger) if self.trigger else clean(text)

    def without_trigger(self, caption: str) -> str:
        if not self.trigger:
            return caption
        return re.sub(re.escape(self.trigger), '', caption, count=1, flags=re.IGNORECASE).strip(' ,')

    def settings(self) -> dict[str, Any]:
        """As JSON can hold it; Recipe.of(**...) gives the same recipe."""
        return {f.name: list(value) if isinstance(value := getattr(self, f.name), tuple) else value
                for f in fields(self)}
