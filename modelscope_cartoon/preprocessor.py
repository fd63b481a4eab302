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

from modelscope_cartoon.configuration import PREPROCESSOR_TYPE
from modelscope_cartoon.errors import BadConfiguration, InvalidPrompt, InvalidRequest
from modelscope_cartoon.log import logger
from modelscope_cartoon.names import refuse_unknown
from modelscope_cartoon.prompt import clean, expand_wildcards, unreadable_words, with_trigger
from modelscope_cartoon.request import GenerationRequest, Picture, parse_request
from modelscope_cartoon.styles import get_style, styles

Translator = Callable[[str], str]
WORDS = 'words.txt'
_HOST_OPTIONS = ('model_dir', 'mode', 'trust_remote_code', 'type')


@PREPROCESSORS.register_module(Fields.multi_modal, module_name=PREPROCESSOR_TYPE)
class StylePromptPreprocessor(Preprocessor):
    """Validates, fills in the style's trigger, expands wildcards.

    style: the one style that the model draws; None where it draws any. triggers: the model's own words for styles
    (a dict by style name) where they aren't the hub's. translator: called with a prompt that isn't English, returns
    English; without one, the entry-point group `modelscope_cartoon.translators` is asked. A model folder with a
    words.txt (one word a line) was taught those words only, and prompts are held against it.
    """

    def __init__(self, model_dir: str | None = None, style: str | None = None,
                 triggers: Mapping[str, str] | None = None, translator: Translator | None = None,
                 mode: str = 'inference', **options: Any):
        super().__init__(mode)
        refuse_unknown('preprocessor option', [k for k in options if k not in _HOST_OPTIONS],
                       ('style', 'triggers', 'translator'))
        self.style = get_style(style).name if style is not None else None
        self.triggers = self._triggers(triggers)
        self._translator = translator
        self._words = Path(model_dir or '', WORDS)
        self._known_words = _known_words(self._words)

    def _triggers(self, given: Mapping[str, str] | None) -> dict[str, str]:
        if given is None:
            return {name: style.trigger for name, style in styles().items() if self.style in (None, name)}
        if not isinstance(given, Mapping) or not all(isinstance(v, str) for v in given.values()):
            raise BadConfiguration(f'triggers is {given!r}; accepted: an object of style names and words.')
        return {get_style(name).name: trigger for name, trigger in given.items()}

    def __call__(self, data: Any, **overrides: Any) -> dict[str, Any]:
        """A prompt, a list of prompts or a dict -> {'request': GenerationRequest, 'pictures': tuple[Picture, ...]}."""
        request = parse_request(data, **overrides)
        pictures = []
        for i in range(request.num_pictures):
            prompt = i // request.num_images_per_prompt
            seed = request.seed[i] if request.seed else None
            pictures.append(Picture(self.revise(request, request.text[prompt], seed or 0),
                                    self._readable(expand_wildcards(request.negative_prompt[prompt], seed or 0)), seed))
        self._warn_of_unreadable(pictures)
        return {'request': request, 'pictures': tuple(pictures)}

    def revise(self, request: GenerationRequest, text: str, seed: int) -> str:
        """The prompt that is really drawn: wildcards chosen, translated where a translator is, trigger in front."""
        text = self._readable(expand_wildcards(text, seed))
        trigger = self._trigger_of(request)
        return with_trigger(text, trigger) if trigger and request.trigger else text

    def _trigger_of(self, request: GenerationRequest) -> str | None:
        style = request.style or self.style
        if style is None:
            return None
        if style not in self.triggers:
            raise InvalidRequest(f'this model draws the style {", ".join(self.triggers)}, not {style!r}; '
                                 f"load that one: pipeline(..., model='{get_style(style).model_id}').")
        return self.triggers[style]

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

    def _warn_of_unreadable(self, pictures: list[Picture]) -> None:
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


def _known_words(path: Path) -> frozenset[str]:
    return frozenset(path.read_text(encoding='utf-8').lower().split()) if path.is_file() else frozenset()


def _installed_translator() -> Translator | None:
    for entry in entry_points(group='modelscope_cartoon.translators'):
        return entry.load()
    return None
