from __future__ import annotations

import logging

import pytest

from modelscope_cartoon.errors import BadConfiguration, InvalidPrompt, InvalidRequest, UnknownOption
from modelscope_cartoon.preprocessor import StylePromptPreprocessor
from modelscope_cartoon.styles import styles


def prompts(preprocessor: StylePromptPreprocessor, data, **overrides) -> list[str]:
    return [picture.prompt for picture in preprocessor(data, **overrides)['pictures']]


def test_a_hub_models_preprocessor_puts_its_own_trigger_in_front():
    assert prompts(StylePromptPreprocessor(style='clipart'), 'a cat') == ['archer style, a cat']
    assert prompts(StylePromptPreprocessor(style='flat'), 'sks style, a cat') == ['sks style, a cat']


def test_a_model_of_no_known_style_leaves_the_prompt_alone_until_a_style_is_asked_for():
    assert prompts(StylePromptPreprocessor(), 'a cat') == ['a cat']
    assert prompts(StylePromptPreprocessor(), 'a cat', style='clipart') == ['archer style, a cat']


def test_trigger_false_leaves_the_prompt_alone():
    assert prompts(StylePromptPreprocessor(style='flat'), {'text': 'a cat', 'trigger': False}) == ['a cat']


def test_a_model_with_words_of_its_own_for_the_styles_uses_them():
    preprocessor = StylePromptPreprocessor(triggers={'flat': 'flat icon', 'design': 'airbrush'})
    assert prompts(preprocessor, 'a cat', style='flat') == ['flat icon, a cat']
    with pytest.raises(InvalidRequest, match='cv_cartoon_stable_diffusion_clipart'):
        preprocessor('a cat', style='clipart')


def test_a_one_style_model_refuses_another_style_and_names_the_model_that_draws_it():
    with pytest.raises(InvalidRequest, match='draws the style design'):
        StylePromptPreprocessor(style='design')('a cat', style='flat')


def test_each_picture_gets_its_own_seed_and_wildcard():
    result = StylePromptPreprocessor()({'text': 'a {red|green|blue} cat', 'seed': 1, 'num_images_per_prompt': 20})
    assert [p.seed for p in result['pictures']] == list(range(1, 21))
    assert {p.prompt for p in result['pictures']} == {'a red cat', 'a green cat', 'a blue cat'}
    alone = StylePromptPreprocessor()({'text': 'a {red|green|blue} cat', 'seed': 7})
    assert alone['pictures'][0] == result['pictures'][6]


def test_words_that_cannot_be_read_are_named_in_one_warning(caplog):
    with caplog.at_level(logging.WARNING, 'modelscope_cartoon'):
        assert prompts(StylePromptPreprocessor(), '一只猫 and a dog') == ['一只猫 and a dog']
    assert len(caplog.records) == 1 and '一只猫' in caplog.text and 'translator' in caplog.text


def test_a_model_that_was_taught_few_words_says_which_it_does_not_know(tmp_path, caplog):
    (tmp_path / 'words.txt').write_text('a\ncat\nred\n', encoding='utf-8')
    preprocessor = StylePromptPreprocessor(str(tmp_path))
    prompts(preprocessor, '(A red:1.2) CAT')
    assert not caplog.records
    prompts(preprocessor, 'a zeppelin cat')
    assert len(caplog.records) == 1 and 'zeppelin' in caplog.text and 'words.txt' in caplog.text


def test_a_translator_is_asked_only_for_what_cannot_be_read(caplog):
    preprocessor = StylePromptPreprocessor(style='flat', translator=lambda text: text.replace('猫', 'cat'))
    assert prompts(preprocessor, '猫') == ['sks style, cat'] and not caplog.records
    assert prompts(StylePromptPreprocessor(translator=lambda text: 1 / 0), 'a cat') == ['a cat']


def test_a_translator_that_returns_no_text_is_an_error():
    with pytest.raises(InvalidPrompt, match='translator returned int'):
        StylePromptPreprocessor(translator=lambda text: 7)('猫')


def test_unknown_options_and_bad_triggers_are_refused():
    with pytest.raises(UnknownOption, match="did you mean 'translator'"):
        StylePromptPreprocessor(translater=None)
    with pytest.raises(BadConfiguration):
        StylePromptPreprocessor(triggers=['flat'])


@pytest.mark.parametrize('name', styles())
def test_every_style_can_be_asked_for_by_its_name_in_any_case(name):
    assert prompts(StylePromptPreprocessor(), 'a cat', style=name.upper())[0].startswith(styles()[name].trigger)


def test_a_models_own_defaults_stand_below_a_preset_and_what_is_given():
    own = StylePromptPreprocessor(defaults={'guidance_scale': 3, 'num_inference_steps': 40})
    settings = [own(*given)['request'] for given in ([{'text': 'a cat'}], [{'text': 'a cat', 'preset': 'fast'}],
                                                     [{'text': 'a cat', 'guidance_scale': 5}])]
    assert [(one.guidance_scale, one.num_inference_steps) for one in settings] == [(3, 40), (3, 20), (5, 40)]
    assert own('a cat', guidance_scale=None)['request'].guidance_scale == 3
    assert StylePromptPreprocessor()('a cat')['request'].guidance_scale == 7.5


@pytest.mark.parametrize('defaults, words', [(['x'], 'an object of fields'), ({'seed': 1}, "unknown default 'seed'"),
                                             ({'guidance_scale': 'x'}, 'guidance_scale is .*accepted: a number')])
def test_defaults_that_can_not_be_used_are_a_fault_of_the_configuration(defaults, words):
    with pytest.raises(BadConfiguration, match=words):
        StylePromptPreprocessor(defaults=defaults)
