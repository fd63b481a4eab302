"""The model card: README.md of a published folder, Chinese first and English below, with the hub's front matter.

The wording is in cards/: card.md is the frame, texts.json the paragraphs by what is known of a model. What a card
states comes from the style's data, the folder's own configuration and recipe.json, or the publisher; never from here.
"""
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from modelscope_cartoon.configuration import TASK
from modelscope_cartoon.styles import Style, style_of_path

STABLE_DIFFUSION_2_1 = 'AI-ModelScope/stable-diffusion-2-1'     # the hub's copy of the base of the five
TRUSTED_OWNERS = ('damo', 'iic')                                # whose ms_wrapper.py the host runs without being asked
LANGUAGES = ('zh', 'en')
_FOLDER = Path(__file__).with_name('cards')


class Sample(NamedTuple):
    file: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Card:
    """What is known of a model. origin: 'cartoon' (one of the five), 'mini' or 'own'. base_model: a hub id.

    relation: 'finetune' or 'adapter'. styles: by name, where it draws several. training: the publisher's own words.
    recipe: the folder's recipe.json. settings: how the samples were drawn.
    """
    model_id: str
    licence: str
    size: int
    origin: str = 'own'
    revision: str | None = None
    style: Style | None = None
    styles: tuple[str, ...] = ()
    trigger: str | None = None
    base_model: str | None = None
    relation: str | None = None
    fused: bool = False
    chinese_name: str | None = None
    training: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    settings: str = ''

    @property
    def trusted(self) -> bool:
        return self.model_id.split('/')[0] in TRUSTED_OWNERS


def style_card(style: Style) -> Card:
    """The card of a full-size model as the hub has it, without pictures."""
    return Card(style.model_id, style.licence, style.size, 'cartoon', style.model_revision, style,
                trigger=style.trigger, base_model=STABLE_DIFFUSION_2_1, relation='finetune')


def render(card: Card) -> str:
    """README.md."""
    parts = {'front_matter': front_matter(card), 'snippet': snippet(card)}
    for language in LANGUAGES:
        parts |= {f'title_{language}': _title(card, language),
                  f'summary_{language}': _summary(card, language),
                  f'hints_{language}': _hints(card, language),
                  f'samples_{language}': _samples(card, language),
                  f'training_{language}': _training(card, language),
                  f'limits_{language}': _text(card, 'limits', _limits(card), language),
                  f'licence_{language}': _text(card, 'licence', _licence(card), language)}
    return Template((_FOLDER / 'card.md').read_text(encoding='utf-8')).substitute(parts)


def front_matter(card: Card) -> str:
    """What the hub reads: licence, task, base model, and the prompt in its try-out box."""
    import yaml

    tags = ['cartoon', 'stable-diffusion', '卡通', *([card.style.name, card.style.title_zh] if card.style else [])]
    facts: dict[str, Any] = {'license': card.licence.lower(), 'tasks': [TASK], 'frameworks': ['pytorch'],
                             'language': ['en'], 'domain': ['multi-modal'], 'tags': tags}
    if card.base_model:
        facts |= {'base_model': card.base_model, 'base_model_relation': card.relation}
    prompt = {'name': 'text', 'data': _example(card)}
    facts['widgets'] = [{'task': TASK, 'inputs': [{'type': 'text', 'name': 'text', 'title': '提示词'}],
                         'examples': [{'name': 1, 'title': '示例', 'inputs': [prompt]}]}]
    return yaml.safe_dump(facts, allow_unicode=True, sort_keys=False, default_flow_style=None, width=1000).rstrip()


def snippet(card: Card) -> str:
    """The code that downloads the model and draws, as it stands in the card."""
    options = f", model_revision='{card.revision}'" if card.revision else ''
    options += '' if card.trusted else ', trust_remote_code=True'
    style = f", 'style': '{card.styles[0]}'" if card.styles else ''
    return (f'import cv2\n'
            f'from modelscope.pipelines import pipeline\n'
            f'from modelscope.utils.constant import Tasks\n\n'
            f"pipe = pipeline(Tasks.text_to_image_synthesis, model='{card.model_id}'{options})\n"
            f"output = pipe({{'text': {_example(card)!r}{style}}})\n"
            f"cv2.imwrite('result.png', output['output_imgs'][0])")


def _example(card: Card) -> str:
    subject = 'a portrait painting of a woman with red hair'
    return f'{card.trigger}, {subject}' if card.trigger else subject


@cache
def _texts() -> dict[str, Any]:
    return json.loads((_FOLDER / 'texts.json').read_text(encoding='utf-8'))


def _text(card: Card, section: str, key: str, language: str) -> str:
    style = card.style
    return Template(_texts()[section][key][language]).substitute(
        model_id=card.model_id, size=card.size, base_model=card.base_model, licence=card.licence,
        trigger=card.trigger, styles='、'.join(card.styles) if language == 'zh' else ', '.join(card.styles),
        training=card.training, settings=card.settings, style_zh=style.title_zh if style else '',
        look=style.look if style else '', scheduler=style.scheduler if style else '')


def _title(card: Card, language: str) -> str:
    name = card.model_id.split('/')[1]
    if language == 'zh':
        return card.chinese_name or (f'卡通文生图模型：{card.style.title_zh}风格' if card.style else name)
    return f'{card.style.title_en}: cartoon text-to-image' if card.style and not card.chinese_name else name


def _summary(card: Card, language: str) -> str:
    key = 'adapter' if card.relation == 'adapter' else card.origin
    return _joined([_text(card, 'summary', key, language),
                    _text(card, 'summary', 'fused', language) if card.fused else ''], language)


def _hints(card: Card, language: str) -> str:
    keys = ['trusted' if card.trusted else 'untrusted', *(['trigger'] if card.trigger else []),
            *(['styles'] if card.styles else []), *(['scheduler'] if card.origin == 'cartoon' else []), 'options']
    return _joined([_text(card, 'hints', key, language) for key in keys], language)


def _joined(sentences: list[str], language: str) -> str:
    return ('' if language == 'zh' else ' ').join(filter(None, sentences))


def _samples(card: Card, language: str) -> str:
    if not card.samples:
        return _text(card, 'samples', 'none', language)
    pictures = ' | '.join(f'![{sample.prompt}]({sample.file})' for sample in card.samples)
    captions = ' | '.join(f'`{sample.prompt}`, seed {sample.seed}' for sample in card.samples)
    rule = ' | '.join('---' for _ in card.samples)
    return f'{_text(card, "samples", "drawn", language)}\n\n| {pictures} |\n| {rule} |\n| {captions} |'


def _training(card: Card, language: str) -> str:
    parts = [_text(card, 'training', 'given', language)] if card.training else []
    if card.origin != 'own':
        parts.append(_text(card, 'training', card.origin, language))
    if card.recipe:
        rows = '\n'.join(f'| {key} | {value} |' for key, value in _rows(card.recipe))
        parts.append(f'{_text(card, "training", "recipe", language)}\n\n| | |\n| --- | --- |\n{rows}')
    return '\n\n'.join(parts) or _text(card, 'training', 'unknown', language)


def _rows(recipe: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, str]]:
    """The plain values of a recipe, nested ones as `group.name`; long lists by their length, and no digests."""
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f'{prefix}{key}.')
        elif isinstance(value, (list, tuple)):
            yield f'{prefix}{key}', ', '.join(map(str, value)) if len(value) <= 6 else f'{len(value)}'
        elif value is not None and len(str(value)) < 64:
            yield f'{prefix}{key}', ' '.join(str(value).replace('|', r'\|').split())


def _limits(card: Card) -> str:
    if card.origin == 'mini':
        return 'mini'
    return 'laion' if card.origin == 'cartoon' or rests_on_laion(card.base_model) else 'own'


def rests_on_laion(base_model: str | None) -> bool:
    """Whether the base is Stable Diffusion 2.1, or one of the five that were tuned from it."""
    return base_model == STABLE_DIFFUSION_2_1 or style_of_path(base_model or '') is not None


def _licence(card: Card) -> str:
    if card.origin == 'cartoon':
        return 'cartoon'
    return 'based' if card.base_model else 'own'
