"""Prompts become the numbers that diffusers (plain and short) or AUTOMATIC1111's webui (the rest) makes of them.

The references here are written from stable-diffusion-webui's modules/sd_hijack_clip.py (`process_tokens`, and
`tokenize_line` with its default comma_padding_backtrack of 20) and modules/prompt_parser.py, not from our code.
"""
from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from modelscope_cartoon.errors import InvalidRequest
from modelscope_cartoon.text_encoding import chunk, encode

CHUNK = 75


@pytest.fixture(scope='module')
def untrained(tiny_pipe) -> Any:
    return tiny_pipe.pipeline


@pytest.fixture(scope='module')
def pipe(untrained) -> Any:
    """With a last norm as a trained text encoder has it, so that there is a mean to keep (CLIP's is about -0.1)."""
    pipe = copy.copy(untrained)
    pipe.text_encoder = copy.deepcopy(pipe.text_encoder)
    bias = torch.randn(16, generator=torch.Generator().manual_seed(0)) * 0.1 - 0.1
    pipe.text_encoder.final_layer_norm.bias.data.copy_(bias)
    return pipe


def ids(pipe: Any, text: str) -> list[int]:
    return pipe.tokenizer(text, add_special_tokens=False).input_ids


def padded(pipe: Any, tokens: list[int]) -> torch.Tensor:
    """Begin, at most 75 tokens, end, padding."""
    tokenizer = pipe.tokenizer
    row = [tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id]
    return torch.tensor([row + [tokenizer.pad_token_id] * (77 - len(row))])


@torch.no_grad()
def a1111(pipe: Any, tokens: list[int], weights: list[float]) -> torch.Tensor:
    """`process_tokens`: z times the multipliers, times the mean that it had over the mean that it has."""
    z = pipe.text_encoder(padded(pipe, tokens))[0]
    original_mean = z.mean()
    for position, weight in enumerate(weights):
        z[:, position + 1] *= weight
    return z * (original_mean / z.mean())


def encoded(pipe: Any, prompt: str, negative: str = '', **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return encode(pipe, prompt, negative, **options)


@pytest.mark.parametrize('negative', ['', 'sk, sk'])
@pytest.mark.parametrize('prompt', ['', 'cat', 'sks style, a portrait painting of a cat', 'Ä 画 🐈', 'c' * CHUNK])
def test_a_plain_short_prompt_is_diffusers_own_bit_for_bit(pipe, prompt: str, negative: str):
    expected = pipe.encode_prompt(prompt, 'cpu', 1, True, negative)
    for ours, theirs in zip(encoded(pipe, prompt, negative), expected, strict=True):
        assert ours.shape == (1, 77, 16) and torch.equal(ours, theirs)


@pytest.mark.parametrize(('prompt', 'plain'), [
    (r'a \(cat\)', 'a (cat)'), (r'a \[cat\]', 'a [cat]'), ('a (cat:1.0)', 'a cat'), ('a ((cat:0.5):2)', 'a cat')])
def test_escapes_and_a_weight_of_one_change_nothing_else(pipe, prompt: str, plain: str):
    assert torch.allclose(encoded(pipe, prompt)[0], pipe.encode_prompt(plain, 'cpu', 1, False)[0], atol=1e-6)


@pytest.mark.parametrize(('prompt', 'pieces'), [
    ('a (cat:1.3) sk', [('a', 1.0), ('cat', 1.3), ('sk', 1.0)]),
    ('a (cat) sk', [('a', 1.0), ('cat', 1.1), ('sk', 1.0)]),
    ('a ((cat)) sk', [('a', 1.0), ('cat', 1.21), ('sk', 1.0)]),
    ('a [cat] sk', [('a', 1.0), ('cat', 1 / 1.1), ('sk', 1.0)]),
    ('(a (cat:0.5)) [[sk]]', [('a', 1.1), ('cat', 0.55), ('sk', 1 / 1.21)]),
    ('(a cat', [('a cat', 1.1)]),
    ('a (cat:0)', [('a', 1.0), ('cat', 0.0)]),
    (r'(a \(cat\):1.5)', [('a', 1.5), ('(', 1.5), ('cat', 1.5), (')', 1.5)]),
])
def test_weights_are_a1111s(pipe, prompt: str, pieces: list[tuple[str, float]]):
    tokens = [token for text, _ in pieces for token in ids(pipe, text)]
    weights = [weight for text, weight in pieces for _ in ids(pipe, text)]
    ours, negative = encoded(pipe, prompt)
    assert torch.allclose(ours, a1111(pipe, tokens, weights), atol=1e-5)
    assert not torch.allclose(ours, a1111(pipe, tokens, [1.0] * len(tokens)), atol=1e-3)
    assert torch.equal(negative, pipe.encode_prompt('', 'cpu', 1, False)[0])


def test_weights_without_a_mean_to_keep_are_weights_alone(untrained):
    # The mean here is rounding, 1e-9 or exactly 0, and a ratio of two of them is any number or none.
    plain = encoded(untrained, 'a cat sk')[0]
    ours = encoded(untrained, 'a (cat:1.3) sk')[0]
    assert plain.mean().abs() < 1e-6
    assert torch.equal(ours[:, 2], plain[:, 2] * 1.3)
    assert torch.equal(ours[:, [0, 1, *range(3, 77)]], plain[:, [0, 1, *range(3, 77)]])


def test_a_weighted_negative_prompt_is_weighted_too(pipe):
    prompt, negative = encoded(pipe, 'cat', 'a (cat:1.3)')
    assert torch.allclose(negative, a1111(pipe, ids(pipe, 'a cat'), [1.0, 1.3]), atol=1e-5)
    assert torch.allclose(prompt, pipe.encode_prompt('cat', 'cpu', 1, False)[0], atol=1e-6)


@pytest.mark.parametrize('words', [76, 150, 151, 400])
def test_a_long_prompt_is_encoded_in_chunks_of_75_and_nothing_is_cut(pipe, words: int):
    tokens = [token for i in range(words) for token in ids(pipe, 'cat' if i % 3 else 'z')]
    ours, negative = encoded(pipe, ' '.join('cat' if i % 3 else 'z' for i in range(words)))
    chunks = [tokens[i:i + CHUNK] for i in range(0, len(tokens), CHUNK)]
    expected = torch.cat([a1111(pipe, one, []) for one in chunks], dim=1)
    assert ours.shape == negative.shape == (1, 77 * -(-words // CHUNK), 16)
    assert torch.allclose(ours, expected, atol=1e-5)


def test_weights_keep_the_mean_of_each_chunk_apart(pipe):
    tokens = ids(pipe, 'cat ' * 75)
    ours = encoded(pipe, 'cat ' * 75 + '(cat:1.5)')[0]
    assert torch.allclose(ours[:, :77], a1111(pipe, tokens, []), atol=1e-5)
    assert torch.allclose(ours[:, 77:], a1111(pipe, tokens[:1], [1.5]), atol=1e-5)


@pytest.mark.parametrize(('before', 'first'), [
    (74, 75),        # the comma is the chunk's last token: nothing is moved
    (65, 66),        # nine words behind the comma go into the next chunk with the rest
    (55, 56),        # 20 tokens back, the farthest that is near
    (54, 75),        # one too far: the phrase is cut where the chunk is full
    (75, 75),        # the comma itself is the first that has no room
])
def test_a_chunk_ends_at_a_comma_that_is_near(pipe, before: int, first: int):
    text = ' '.join(['cat'] * before) + ', ' + ' '.join(['z'] * 30)
    chunks = [[token for token, _ in one] for one in chunk(pipe.tokenizer, text)]
    assert [len(one) for one in chunks] == [first, before + 31 - first]
    assert [token for one in chunks for token in one] == ids(pipe, text)


def test_a_long_prompt_with_commas_is_encoded_as_it_is_chunked(pipe):
    text = ' '.join(['cat'] * 65) + ', ' + ' '.join(['z'] * 30)
    tokens = ids(pipe, text)
    expected = torch.cat([a1111(pipe, tokens[:66], []), a1111(pipe, tokens[66:], [])], dim=1)
    assert torch.allclose(encoded(pipe, text)[0], expected, atol=1e-5)


def test_break_starts_a_new_chunk(pipe):
    ours, negative = encoded(pipe, 'a sk BREAK (cat:1.2) BREAK z')
    assert torch.allclose(ours, torch.cat([
        a1111(pipe, ids(pipe, 'a sk'), []), a1111(pipe, ids(pipe, 'cat'), [1.2]), a1111(pipe, ids(pipe, 'z'), [])],
        dim=1), atol=1e-5)
    assert negative.shape == ours.shape


@pytest.mark.parametrize('text', ['breakfast', 'BREAKFAST', 'break'])
def test_only_the_word_break_in_capitals_breaks(pipe, text: str):
    assert torch.equal(encoded(pipe, f'a {text} cat')[0], pipe.encode_prompt(f'a {text} cat', 'cpu', 1, False)[0])


@pytest.mark.parametrize('long_side', [0, 1])
def test_the_shorter_of_prompt_and_negative_prompt_is_padded_with_empty_chunks(pipe, long_side: int):
    texts = ['cat', 'sk']
    texts[long_side] = ' '.join(['cat'] * 160)
    shorter = encoded(pipe, *texts)[1 - long_side]
    empty = pipe.encode_prompt('', 'cpu', 1, False)[0]
    expected = torch.cat([a1111(pipe, ids(pipe, texts[1 - long_side]), []), empty, empty], dim=1)
    assert torch.allclose(shorter, expected, atol=1e-5)


@pytest.mark.parametrize('skip', [1, 2, 3])
def test_clip_skip_takes_an_earlier_layer_through_the_last_norm(pipe, skip: int):
    with torch.no_grad():
        layers = pipe.text_encoder(padded(pipe, ids(pipe, 'cat')), output_hidden_states=True).hidden_states
        expected = pipe.text_encoder.final_layer_norm(layers[len(layers) - 1 - skip])
    prompt, negative = encoded(pipe, 'cat', 'sk', clip_skip=skip)
    assert torch.equal(prompt, expected)
    assert torch.allclose(negative, pipe.encode_prompt('sk', 'cpu', 1, False)[0], atol=1e-6)


def test_clip_skip_beyond_the_layers_is_refused(pipe):
    with pytest.raises(InvalidRequest, match='clip_skip is 4; this text encoder has 3 layers'):
        encoded(pipe, 'cat', clip_skip=4)
