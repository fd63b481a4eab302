"""The cards: what they state, and that docs/model_cards is what the code writes.

    PYTHONPATH=. python tests/test_card.py      writes docs/model_cards anew
"""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from modelscope_cartoon.card import LANGUAGES, Card, Sample, _texts, render, snippet, style_card
from modelscope_cartoon.styles import get_style, styles

CARDS = Path(__file__).parent.parent / 'docs' / 'model_cards'
FLAT = style_card(get_style('flat'))
OWN = Card('me/mine', 'MIT', 512)


def front_matter(text: str) -> dict:
    return yaml.safe_load(text.split('---\n')[1])


@pytest.mark.parametrize('name', styles())
def test_the_cards_in_the_documentation_are_what_the_code_writes(name):
    written = (CARDS / f'{name}.md').read_text(encoding='utf-8')
    assert written == render(style_card(get_style(name))), 'write them anew: PYTHONPATH=. python tests/test_card.py'


@pytest.mark.parametrize('name', styles())
def test_a_style_s_card_has_all_that_the_hub_and_a_reader_need(name):
    style, text = get_style(name), render(style_card(get_style(name)))
    facts = front_matter(text)
    assert facts['tasks'] == ['text-to-image-synthesis'] and facts['frameworks'] == ['pytorch']
    assert facts['license'] == 'apache-2.0' and facts['base_model_relation'] == 'finetune'
    assert facts['base_model'] == 'AI-ModelScope/stable-diffusion-2-1'
    for words in (style.title_zh, style.title_en, style.look, style.trigger, style.model_id, 'LAION-5B', 'RAIL++-M',
                  '10 到 100 张', '10 to 100 pictures', 'description/', '## 局限与偏差', '## Limits and bias'):
        assert words in text
    assert '![' not in text, 'a picture that no model drew'


def test_every_paragraph_is_there_in_both_languages():
    for section in _texts().values():
        for paragraph in section.values():
            assert set(paragraph) == set(LANGUAGES)


def test_a_trusted_owner_s_snippet_needs_no_flag_and_another_s_says_what_the_flag_does():
    assert 'trust_remote_code' not in render(FLAT)
    other = replace(FLAT, model_id='me/flat')
    assert ', trust_remote_code=True)' in snippet(other)
    assert render(other).count("modelscope_cartoon.load_pipeline('me/flat')") == 2


def test_the_snippet_is_code_and_names_the_tag_and_the_style():
    compile(snippet(FLAT), 'card', 'exec')
    assert "model_revision='v1.0.0'" in snippet(FLAT) and 'model_revision' not in snippet(OWN)
    assert "'style': 'clipart'" in snippet(replace(OWN, styles=('clipart', 'flat')))


def test_what_nobody_stated_is_called_unknown_and_not_made_up():
    text = render(OWN)
    assert 'has not stated what it was trained on' in text and 'LAION' not in text
    assert 'base_model' not in front_matter(text)


def test_what_the_publisher_and_the_recipe_say_stands_in_the_card():
    text = render(replace(OWN, training='40 of my own drawings', recipe={
        'steps': 600, 'lora': {'rank': 8}, 'pictures': list(range(40)), 'note': None, 'base': {'unet': 64 * 'a'}}))
    assert '40 of my own drawings (as stated by the publisher)' in text
    assert '| steps | 600 |' in text and '| lora.rank | 8 |' in text and '| pictures | 40 |' in text
    assert 'note' not in text and 'aaaa' not in text


def test_an_adapter_names_its_base_and_inherits_its_limits():
    text = render(replace(OWN, base_model='damo/cv_cartoon_stable_diffusion_flat', relation='adapter'))
    assert front_matter(text)['base_model_relation'] == 'adapter' and 'LAION' in text
    assert text.count('`damo/cv_cartoon_stable_diffusion_flat`') == 4


def test_samples_stand_with_their_prompts_and_seeds():
    text = render(replace(FLAT, samples=(Sample('description/1.png', 'sks style, a cat', 7),), settings='25 steps'))
    assert text.count('![sks style, a cat](description/1.png)') == 2 and 'seed 7' in text and '(25 steps)' in text


def write() -> None:
    CARDS.mkdir(exist_ok=True)
    for name, style in styles().items():
        (CARDS / f'{name}.md').write_text(render(style_card(style)), encoding='utf-8')


if __name__ == '__main__':
    write()
