"""Prompt text in, typed pieces out: cleaning, wildcards, LoRA tags, and A1111's weights and BREAK.

The weight syntax and its numbers are AUTOMATIC1111 stable-diffusion-webui's, `modules/prompt_parser.py`,
`parse_prompt_attention`: ( multiplies by 1.1, [ divides by 1.1, (text:1.3) multiplies by 1.3.
"""
from __future__ import annotations

import random
import re
import unicodedata
from typing import NamedTuple

from modelscope_cartoon.errors import InvalidPrompt

MAX_CHARACTERS = 10_000
_ROUND, _SQUARE = 1.1, 1 / 1.1

_TOKEN = re.compile(r'\\[()\[\]\\]|\\|\(|\[|:\s*([+-]?\d*\.?\d+)\s*\)|\)|\]|[^\\()\[\]:]+|:')
_BREAK = re.compile(r'\s*\bBREAK\b\s*')
_WILDCARD = re.compile(r'\{([^{}]*\|[^{}]*)\}')
_LORA = re.compile(r'<lora:([^<>]*)>', re.IGNORECASE)
_SPECIAL = re.compile(r'<\|\s*(startoftext|endoftext)\s*\|>', re.IGNORECASE)


class Piece(NamedTuple):
    """Text with its weight; `BREAK` is a piece whose text is None."""
    text: str | None
    weight: float


def clean(text: str) -> str:
    """`text` in NFC without control characters, lone surrogates or the tokenizer's own markers.

    InvalidPrompt when longer than MAX_CHARACTERS.
    """
    if len(text) > MAX_CHARACTERS:
        raise InvalidPrompt(f'the prompt has {len(text):,} characters; at most {MAX_CHARACTERS:,} are accepted; '
                            'shorten it.')
    text = unicodedata.normalize('NFC', text)
    kept = ''.join(' ' if c in '\t\n\r' else c for c in text
                   if c in '\t\n\r' or unicodedata.category(c) not in ('Cc', 'Cs'))
    return _SPECIAL.sub(r'\1', kept).strip()


def expand_wildcards(text: str, seed: int) -> str:
    """Each `{a|b}` becomes one of its options, `{2$$a|b|c}` two of them; the same seed gives the same choice."""
    rng = random.Random(seed)
    for _ in range(text.count('{')):
        text, changed = _WILDCARD.subn(lambda match: _choose(match.group(1), rng), text, count=1)
        if not changed:
            break
    return text


def _choose(body: str, rng: random.Random) -> str:
    count, marker, options = body.partition('$$')
    if not (marker and count.strip().isdigit()):
        count, options = '1', body
    choices = [option.strip() for option in options.split('|')]
    return ', '.join(rng.sample(choices, min(int(count), len(choices))))


def take_loras(text: str) -> tuple[str, list[tuple[str, float]]]:
    """`text` without its `<lora:name:0.8>` and `<lora:name>`, (name, scale) of each. InvalidPrompt names a bad one."""
    loras = []
    while match := _LORA.search(text):
        loras.append(_lora(match.group(1)))
        text = _joined(text[:match.start()].rstrip(), text[match.end():].lstrip())
    if '<lora:' in text.lower():
        raise InvalidPrompt("the prompt has a '<lora:' that is not closed; accepted: <lora:name> or <lora:name:0.8>.")
    return text, loras


def _lora(body: str) -> tuple[str, float]:
    name, colon, scale = body.partition(':')
    try:
        if not name.strip():
            raise ValueError('no name')
        return name.strip(), float(scale) if colon else 1.0
    except ValueError as error:
        raise InvalidPrompt(f"the prompt has '<lora:{body[:60]}>', which can't be read; accepted: <lora:name> or "
                            '<lora:name:0.8>.') from error


def _joined(before: str, after: str) -> str:
    """The text around a tag, without a comma that separated nothing but the tag."""
    if not after or after.startswith(','):
        before = before.removesuffix(',').rstrip()
    if not before:
        return after.lstrip(', ')
    return before + ('' if not after or after[0] in ',:)]' else ' ') + after


def parse_weights(text: str) -> list[Piece]:
    """The pieces of an A1111 prompt, neighbours of equal weight merged, BREAK as a piece of its own."""
    pieces: list[list] = []
    open_round: list[int] = []
    open_square: list[int] = []

    def multiply_from(start: int, factor: float) -> None:
        for piece in pieces[start:]:
            piece[1] *= factor

    for match in _TOKEN.finditer(text):
        token, weight = match.group(0), match.group(1)
        if token[0] == '\\' and len(token) == 2:
            pieces.append([token[1], 1.0])
        elif token == '(':
            open_round.append(len(pieces))
        elif token == '[':
            open_square.append(len(pieces))
        elif weight is not None and open_round:
            multiply_from(open_round.pop(), float(weight))
        elif token == ')' and open_round:
            multiply_from(open_round.pop(), _ROUND)
        elif token == ']' and open_square:
            multiply_from(open_square.pop(), _SQUARE)
        else:
            _append_text(pieces, token)
    for start in open_round:
        multiply_from(start, _ROUND)
    for start in open_square:
        multiply_from(start, _SQUARE)
    return _merged(pieces) or [Piece('', 1.0)]


def _append_text(pieces: list[list], token: str) -> None:
    for i, part in enumerate(_BREAK.split(token)):
        if i:
            pieces.append([None, 1.0])
        if part:
            pieces.append([part, 1.0])


def _merged(pieces: list[list]) -> list[Piece]:
    merged: list[Piece] = []
    for text, weight in pieces:
        if text is None:
            merged.append(Piece(None, 1.0))
        elif merged and merged[-1].text is not None and merged[-1].weight == weight:
            merged[-1] = Piece(merged[-1].text + text, weight)
        else:
            merged.append(Piece(text, weight))
    return merged


def is_plain(text: str) -> bool:
    """True where the weight syntax changes nothing: no weight, no BREAK, no escape."""
    return parse_weights(text) == [Piece(text, 1.0)]


def unreadable_words(text: str) -> list[str]:
    """The words in scripts that CLIP's English text encoders were hardly trained on, such as Chinese."""
    words = re.findall(r'\w+', text)
    return [word for word in words if any(_is_foreign(c) for c in word)]


def _is_foreign(character: str) -> bool:
    return character.isalpha() and not unicodedata.name(character, '').startswith(('LATIN', 'FULLWIDTH LATIN'))


def with_trigger(text: str, trigger: str) -> str:
    """`text` with `trigger` in front, unless it stands in it already (any case, any spacing)."""
    words = r'\s+'.join(re.escape(word) for word in trigger.split())
    if re.search(rf'(?<!\w){words}(?!\w)', text, re.IGNORECASE):
        return text
    return f'{trigger}, {text}' if text else trigger
