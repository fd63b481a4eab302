"""Every row of bad input gives a picture or an InvalidRequest that names the key."""
from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscope_cartoon import parse_request
from modelscope_cartoon.errors import CartoonError, InvalidPrompt, InvalidRequest, UnknownOption
from modelscope_cartoon.request import FIELD_NAMES

NAN, INF = math.nan, math.inf

REFUSED = [
    *[('text', v) for v in (None, 7, b'cat', [], ['a', 7], [['a']], {'a': 1}, 'x' * 10_001)],
    *[('num_inference_steps', v) for v in (0, -1, 1.5, '2', True, NAN, 1_000_000, 10**5000, [20])],
    *[('height', v) for v in (100, 63, 0, -64, 64.0, 100_000, '512', True, 10**5000)],
    *[('width', v) for v in (100, 2056, 56, None.__class__)],
    *[('guidance_scale', v) for v in (NAN, INF, -INF, 1e30, -1, '7', True, 10**400, 1j)],
    *[('guidance_rescale', v) for v in (NAN, 2, -0.1, '0')],
    *[('eta', v) for v in (NAN, 5, -1, '0')],
    *[('negative_prompt', v) for v in (7, ['a', 'b'], [None], b'x')],
    *[('num_images_per_prompt', v) for v in (0, -1, 1.5, True, '2', 1001)],
    *[('seed', v) for v in (-1, 2**32, 2**64, 1.5, '1', True, [], [1, -1], [1, 2.0], NAN)],
    *[('generator', v) for v in (7, 'cpu', [1], object())],
    *[('style', v) for v in ('flatt', 7, '', ['flat'])],
    *[('scheduler', v) for v in ('eulr', 7, '', object)],
    *[('output_type', v) for v in ('gif', 7, '')],
    *[('trigger', v) for v in ('yes', 1, 0)],
    *[('clip_skip', v) for v in (-1, 1.0, 13)],
    *[('callback_on_step_end', v) for v in (7, 'print')],
    *[('callback', v) for v in (7,)],
    *[('callback_steps', v) for v in (0, 1.5)],
]


@pytest.mark.parametrize('key, value', REFUSED, ids=lambda v: str(v)[:20] if not isinstance(v, int) else 'int')
def test_a_bad_value_is_refused_in_one_sentence_that_names_it(key, value):
    with pytest.raises(InvalidRequest) as refusal:
        parse_request({'text': 'a cat', key: value})
    message = str(refusal.value)
    assert key in message or (key == 'text' and 'prompt' in message) or 'unknown' in message
    assert '\n' not in message and len(message) < 700 and refusal.value.exit_code == 2


def test_the_nearest_valid_value_is_named():
    with pytest.raises(InvalidRequest, match=r'nearest: 512\.'):
        parse_request('a cat', height=510)
    with pytest.raises(InvalidRequest, match=r'nearest: 2048\.'):
        parse_request('a cat', width=100_000)
    with pytest.raises(InvalidRequest, match=r'nearest: 1000\.'):
        parse_request('a cat', num_inference_steps=5000)


@pytest.mark.parametrize('wrong, right', [('sede', 'seed'), ('prompt', 'text'), ('steps', 'num_inference_steps'),
                                          ('guidance_scal', 'guidance_scale'), ('negativ_prompt', 'negative_prompt')])
def test_an_unknown_key_names_the_nearest_known_one(wrong, right):
    with pytest.raises(UnknownOption, match=f"did you mean '{right}'"):
        parse_request({'text': 'a cat', wrong: 1})


def test_an_input_without_text_is_an_invalid_prompt():
    with pytest.raises(InvalidPrompt, match="no 'text'"):
        parse_request({'seed': 1})
    assert InvalidPrompt.code == 'invalid_prompt'


def test_the_defaults_are_those_of_diffusers_and_the_host():
    request = parse_request('a cat')
    assert (request.num_inference_steps, request.guidance_scale, request.output_type) == (50, 7.5, 'bgr')
    assert request.height is request.width is request.scheduler is request.style is None
    assert request.trigger and request.negative_prompt == ('',) and len(request.seed) == 1


def test_call_keywords_override_the_dict():
    request = parse_request({'text': 'a cat', 'height': 512, 'seed': 1}, height=768, seed=None)
    assert request.height == 768 and len(request.seed) == 1


def test_an_empty_prompt_and_numpy_numbers_are_accepted():
    request = parse_request('', seed=np.int64(7), height=np.int32(64), guidance_scale=np.float32(3))
    assert request.text == ('',) and request.seed == (7,) and request.guidance_scale == 3.0


def test_further_pictures_count_the_seed_up_and_wrap_around():
    assert parse_request('a', seed=2**32 - 2, num_images_per_prompt=4).seed == (2**32 - 2, 2**32 - 1, 0, 1)
    assert parse_request({'text': ['a', 'b'], 'seed': 5, 'num_images_per_prompt': 2}).seed == (5, 6, 7, 8)


def test_a_list_of_seeds_says_how_many_pictures():
    assert parse_request('a', seed=[9, 3, 9]).num_images_per_prompt == 3
    assert parse_request(['a', 'b'], seed=[1, 2]).num_images_per_prompt == 1
    with pytest.raises(InvalidRequest, match='2 entries for 3 pictures'):
        parse_request('a', seed=[1, 2], num_images_per_prompt=3)


def test_a_seed_is_drawn_and_recorded_unless_a_generator_is_given():
    assert parse_request('a').seed != parse_request('a').seed
    assert parse_request('a', generator=torch.Generator()).seed is None


def test_a_generator_list_needs_one_for_each_picture():
    generators = [torch.Generator(), torch.Generator()]
    assert parse_request('a', generator=generators, num_images_per_prompt=2).generator is generators
    with pytest.raises(InvalidRequest, match='2 entries for 1 pictures'):
        parse_request('a', generator=generators)


def test_negative_prompts_are_one_or_one_for_each_prompt():
    assert parse_request(['a', 'b'], negative_prompt='x').negative_prompt == ('x', 'x')
    assert parse_request(['a', 'b'], negative_prompt=['x', 'y']).negative_prompt == ('x', 'y')


def test_too_many_pixels_in_one_request_are_refused():
    with pytest.raises(InvalidRequest, match='pixels'):
        parse_request('a', height=2048, width=2048, num_images_per_prompt=100)


def test_names_are_accepted_in_any_case_and_returned_as_written_in_the_tables():
    request = parse_request('a', style='FLAT', scheduler='dpm++ 2m karras', output_type='PNG')
    assert (request.style, request.scheduler, request.output_type) == ('flat', 'DPM++ 2M Karras', 'png')


def test_the_hosts_old_callback_is_called_every_callback_steps():
    seen = []
    request = parse_request('a', callback=lambda *a: seen.append(a), callback_steps=2)
    pipe = SimpleNamespace(scheduler=SimpleNamespace(order=1, num_inference_steps=5), num_timesteps=5)
    for step in range(5):
        assert request.callback_on_step_end(pipe, step, 900 - step, {'latents': 'z'}) == {}
    assert seen == [(0, 900, 'z'), (2, 898, 'z'), (4, 896, 'z')]


def test_a_request_cannot_be_changed():
    with pytest.raises(AttributeError):
        parse_request('a').height = 64


anything = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
                     st.binary(max_size=5), st.lists(st.integers(), max_size=3),
                     st.dictionaries(st.text(max_size=3), st.integers(), max_size=2))


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from([*FIELD_NAMES, 'sede', 'x']), anything, max_size=5), anything)
def test_whatever_is_given_comes_out_checked_or_refused(fields, text):
    try:
        request = parse_request({'text': text, **fields})
    except CartoonError as error:
        assert str(error)
    else:
        assert request.text and len(request.negative_prompt) == len(request.text)
        assert 1 <= request.num_inference_steps <= 1000 and 0 <= request.guidance_scale <= 50
        assert request.seed is None or len(request.seed) == request.num_pictures
