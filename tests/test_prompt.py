"""Cleaning, wildcards, triggers, and A1111's weight syntax with the examples of its own docstring."""
from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscope_cartoon.errors import InvalidPrompt
from modelscope_cartoon.prompt import clean, expand_wildcards, is_plain, parse_weights, unreadable_words, with_trigger

# AUTOMATIC1111 stable-diffusion-webui, modules/prompt_parser.py, docstring of parse_prompt_attention
A1111 = [
    ('normal text', [('normal text', 1.0)]),
    ('an (important) word', [('an ', 1.0), ('important', 1.1), (' word', 1.0)]),
    ('(unbalanced', [('unbalanced', 1.1)]),
    (r'\(literal\]', [('(literal]', 1.0)]),
    ('(unnecessary)(parens)', [('unnecessaryparens', 1.1)]),
    ('a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).',
     [('a ', 1.0), ('house', 1.5730000000000004), (' ', 1.1), ('on', 1.0), (' a ', 1.1), ('hill', 0.55),
      (', sun, ', 1.1), ('sky', 1.4641000000000006), ('.', 1.1)]),
]


@pytest.mark.parametrize('text, expected', A1111)
def test_weights_are_read_as_a1111_reads_them(text, expected):
    pieces = parse_weights(text)
    assert [p.text for p in pieces] == [t for t, _ in expected]
    assert all(math.isclose(p.weight, w) for p, (_, w) in zip(pieces, expected))


def test_break_stands_alone_and_only_as_a_word():
    assert [p.text for p in parse_weights('a BREAK b')] == ['a', None, 'b']
    assert [p.text for p in parse_weights('BREAKFAST')] == ['BREAKFAST']


@pytest.mark.parametrize('text, plain', [('a cat', True), ('a: cat', True), ('', True), ('a (cat)', False),
                                         ('a [cat]', False), ('a BREAK b', False), (r'\(a\)', False)])
def test_plain_means_that_the_syntax_changes_nothing(text, plain):
    assert is_plain(text) is plain


def test_the_trigger_comes_once_in_front_and_is_never_doubled():
    assert with_trigger('a cat', 'sks style') == 'sks style, a cat'
    for text in ('sks style, a cat', 'a cat, SKS  Style', '(sks style:1.2) a cat'):
        assert with_trigger(text, 'sks style') == text
    assert with_trigger('my sks styled cat', 'sks style').startswith('sks style, ')
    assert with_trigger('', 'sks style') == 'sks style'


def test_control_characters_surrogates_and_tokenizer_markers_are_taken_out():
    assert clean('a\x00\x07\x9f\ud800 cat<|endoftext|>\n') == 'a catendoftext'
    assert clean('cafe\u0301') == 'caf\u00e9'
    assert clean('猫🐱') == '猫🐱'


def test_a_prompt_over_ten_thousand_characters_is_refused_with_its_length():
    assert len(clean('x' * 10_000)) == 10_000
    with pytest.raises(InvalidPrompt, match='1,000,000 characters'):
        clean('x' * 1_000_000)


def test_wildcards_choose_by_the_seed_and_all_options_come_up():
    drawn = {expand_wildcards('a {red|green|blue} cat', seed) for seed in range(40)}
    assert drawn == {'a red cat', 'a green cat', 'a blue cat'}
    assert expand_wildcards('{a|b} {c|d}', 7) == expand_wildcards('{a|b} {c|d}', 7)


def test_wildcards_nest_take_several_and_leave_other_braces_alone():
    assert expand_wildcards('{{a|a}|a}', 1) == 'a'
    assert set(expand_wildcards('{2$$a|b|c}', 3).split(', ')) < {'a', 'b', 'c'}
    assert len(expand_wildcards('{2$$a|b|c}', 3).split(', ')) == 2
    assert expand_wildcards('{plain} {', 1) == '{plain} {'


def test_words_in_other_scripts_are_found_and_latin_ones_are_not():
    assert unreadable_words('一只猫 with café and naïve hat, Привет') == ['一只猫', 'Привет']
    assert unreadable_words('a cat, 3 dogs!') == []


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from('ab ,:()[]\\.0123BREAK'), max_size=60))
def test_any_text_parses_and_every_weight_is_a_finite_number(text):
    pieces = parse_weights(text)
    assert pieces and all(math.isfinite(p.weight) for p in pieces)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80))
def test_cleaning_is_stable_and_leaves_no_control_character(text):
    once = clean(text)
    assert clean(once) == once
    assert not any(unicodedata.category(c) in ('Cc', 'Cs') for c in once)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.integers(0, 2**32 - 1))
def test_wildcards_end_and_the_same_seed_gives_the_same_text(text, seed):
    assert expand_wildcards(text, seed) == expand_wildcards(text, seed)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.sampled_from(['sks style', 'archer style']))
def test_adding_a_trigger_twice_is_adding_it_once(text, trigger):
    assert with_trigger(with_trigger(text, trigger), trigger) == with_trigger(text, trigger)
