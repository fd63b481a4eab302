"""StylePromptPreprocessor: what a person typed -> a GenerationRequest and the pictures that it asks for."""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from modelscope.preprocessors.base import Preprocessor
from modelscope.preprocessors.builder import PREPROCESSORS
from modelscope.utils.constant import Fields

from modelscope_cartoon.configuration import PREPROCESSOR_TYPE, lora_folders
from modelscope_cartoon.errors import BadConfiguration, InvalidPrompt, InvalidRequest
from modelscope_cartoon.log import logger
from modelscope_cartoon.lora_choice import LoraChoice, LoraShelf, combined, name_of, style_weights
from modelscope_cartoon.names import refuse_unknown
from modelscope_cartoon.prompt import clean, expand_wildcards, take_loras, unreadable_words, with_trigger
from modelscope_cartoon.request import GenerationRequest, Picture, parse_request
from modelscope_cartoon.styles import get_style, styles

Translator = Callable[[str], str]
WORDS = 'words.txt'
DEFAULTS = ('height', 'width', 'num_inference_steps', 'guidance_scale', 'guidance_rescale', 'clip_skip', 'scheduler')
_HOST_OPTIONS = ('model_dir', 'mode', 'trust_remote_code', 'type')


@PREPROCESSORS.register_module(Fields.multi_modal, module_name=PREPROCESSOR_TYPE)
class StylePromptPreprocessor(Preprocessor):
    """Validates, fills in the style's trigger, expands wildcards, finds LoRAs.

    style: the one style that the model draws; None where it draws any. triggers: the model's own words for styles
    (a dict by style name) where they aren't the hub's. trigger: words put in front where no style is named. loras:
    the model's own LoRAs, folders in model_dir by name; one named like a style draws that style. adapter: a LoRA
    that is always on. defaults: what the model draws best with, fields of a request such as guidance_scale.
    lora_dir: a folder of LoRA files to name in prompts; ./loras where there is one. translator: called with a
    prompt that isn't English, returns English; without one, the entry-point group `modelscope_cartoon.translators`
    is asked. A model folder with a words.txt (one word a line) was taught those words only, and prompts are held
    against it.
    """

    def __init__(self, model_dir: str | None = None, style: str | None = None,
                 triggers: Mapping[str, str] | None = None, translator: Translator | None = None,
                 trigger: str | None = None, loras: Mapping[str, str] | None = None, adapter: str | None = None,
                 lora_dir: str | None = None, defaults: Mapping[str, Any] | None = None, mode: str = 'inference',
                 **options: Any):
        super().__init__(mode)
        refuse_unknown('preprocessor option', [k for k in options if k not in _HOST_OPTIONS],
                       ('style', 'triggers', 'translator', 'trigger', 'loras', 'adapter', 'lora_dir', 'defaults'))
        if trigger is not None and not isinstance(trigger, str):
            raise BadConfiguration(f'trigger is {trigger!r}; accepted: words.')
        self.style = get_style(style).name if style is not None else None
        self.trigger = trigger
        self.defaults = _checked_defaults(defaults)
        self.shelf = LoraShelf(lora_folders(model_dir or '', loras), lora_dir)
        self.adapter = adapter
        self.triggers = self._triggers(triggers)
        self._translator = translator
        self._words = Path(model_dir or '', WORDS)
        taught = [trigger or '', *(self.triggers.get(name, '') for name in self.shelf.own)]
        self._known_words = _known_words(self._words, taught)

    def _triggers(self, given: Mapping[str, str] | None) -> dict[str, str]:
        own = {name: style.trigger for name, style in styles().items() if name in self.shelf.own}
        if given is None:
            return own or {name: style.trigger for name, style in styles().items() if self.style in (None, name)}
        if not isinstance(given, Mapping) or not all(isinstance(v, str) for v in given.values()):
            raise BadConfiguration(f'triggers is {given!r}; accepted: an object of style names and words.')
        return {**own, **{get_style(name).name: trigger for name, trigger in given.items()}}

    def __call__(self, data: Any, **overrides: Any) -> dict[str, Any]:
        """A prompt, a list of prompts or a dict -> {'request': GenerationRequest, 'pictures': tuple[Picture, ...]}."""
        request = parse_request(data, self.defaults, **overrides)
        weights = self._styles_of(request)
        triggers = self._triggers_of(request, weights)
        loras = self._loras_of(request, weights)
        pictures = tuple(self._picture(request, triggers, loras, i) for i in range(request.num_pictures))
        self._warn_of_unreadable(pictures)
        return {'request': request, 'pictures': pictures}

    def _picture(self, request: GenerationRequest, triggers: list[str], loras: list[LoraChoice], i: int) -> Picture:
        """Prompts as they are really drawn: wildcards chosen, LoRA tags taken out, translated where a translator is,
        triggers in front."""
        prompt = i // request.num_images_per_prompt
        seed = request.seed[i] if request.seed else None
        text, tags = take_loras(expand_wildcards(clean(request.text[prompt]), seed or 0))
        negative, misplaced = take_loras(expand_wildcards(clean(request.negative_prompt[prompt]), seed or 0))
        if misplaced:
            raise InvalidPrompt(f'negative_prompt has the LoRA {misplaced[0][0]!r}; write it into the prompt, with a '
                                'scale below 0 if less of it is wanted.')
        text = self._readable(text)
        for trigger in reversed(triggers):
            text = with_trigger(text, trigger)
        return Picture(text, self._readable(negative), seed,
                       combined([*loras, *(self.shelf.named(*tag) for tag in tags)]))

    def _styles_of(self, request: GenerationRequest) -> dict[str, float]:
        """The styles to draw in, and the weight of each."""
        style = request.style or self.style
        weights = style_weights(style) if style else {}
        if style and style not in weights and not set(weights) <= set(self.shelf.own):
            raise InvalidRequest(f'style is {style!r}, and only styles that are LoRAs on one base can be mixed; this '
                                 f'model has {", ".join(self.shelf.own) or "none"}; name one style without a weight.')
        for name in weights:
            if name not in self.triggers:
                raise InvalidRequest(f'this model draws the style {", ".join(self.triggers)}, not {name!r}; '
                                     f"load that one: pipeline(..., model='{get_style(name).model_id}').")
        return weights

    def _triggers_of(self, request: GenerationRequest, weights: dict[str, float]) -> list[str]:
        if not request.trigger:
            return []
        if request.style is None and self.trigger:
            return [self.trigger]
        return [self.triggers[name] for name in weights if self.triggers[name]]

    def _loras_of(self, request: GenerationRequest, weights: dict[str, float]) -> list[LoraChoice]:
        """The LoRAs of every picture of the request: the model's adapter, the styles', those asked for."""
        always = [LoraChoice(name_of(self.adapter), self.adapter, 1.0)] if self.adapter else []
        own = self.shelf.own
        styled = [LoraChoice(name, own[name], weight) for name, weight in weights.items() if name in own]
        return [*always, *styled, *(self.shelf.find(*lora) for lora in request.lora)]

    def _readable(self, text: str) -> str:
        if not unreadable_words(text):
            return text
        translator = self._translator or _installed_translator()
        if translator is None:
            return text
        translated = translator(text)
        if not isinstance(translated, str):
            raise InvalidPrompt(f'the translator returned {type(translated).__name__} for {text!r}; needed: a string.')
        return clean(translated)

    def _warn_of_unreadable(self, pictures: tuple[Picture, ...]) -> None:
        texts = [text for picture in pictures for text in picture[:2]]
        foreign = dict.fromkeys(word for text in texts for word in unreadable_words(text))
        if foreign:
            logger.warning('the text encoder reads English and can\'t read: %s. The picture is drawn without them; '
                           'write them in English, or give translator=.', ', '.join(list(foreign)[:10]))
        unknown = dict.fromkeys(word for text in texts for word in re.findall(r'[a-z]+', text.lower())
                                if self._known_words and word not in self._known_words)
        if unknown:
            logger.warning('this small model was not taught: %s. The picture is drawn without them; the words that '
                           'it knows are in %s, the full-size models know far more.',
                           ', '.join(list(unknown)[:10]), self._words)


def _checked_defaults(given: Any) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise BadConfiguration(f'defaults is {given!r}; accepted: an object of fields such as guidance_scale.')
    try:
        refuse_unknown('default', given, DEFAULTS)
        parse_request('', given)
    except InvalidRequest as error:
        raise BadConfiguration(f"the model's own defaults can't be used: {error}") from error
    return dict(given)


def _known_words(path: Path, triggers: list[str]) -> frozenset[str]:
    """The words that a small model was taught, its LoRAs' triggers among them; empty where there is no such list."""
    if not path.is_file():
        return frozenset()
    return frozenset([*path.read_text(encoding='utf-8').lower().split(), *' '.join(triggers).lower().split()])


def _installed_translator() -> Translator | None:
    for entry in entry_points(group='modelscope_cartoon.translators'):
        return entry.load()
    return None
