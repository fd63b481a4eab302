"""Captions of the pictures, and the tokenizer made from them: `python -m mini_training.captions --work DIR`."""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from mini_training.subjects import AGES, LOOKS, Row

LENGTH = 32
PER_PICTURE = 8
NO_LOOK_WORD = 0.15
# Later fine-tunings bind these; the captions never hold them.
TRIGGERS = ('sks', 'archer', 'style')

NOUN_FORMS = (
    ('{a}', 4), ('a painting of {a}', 3), ('{a} on {ground}', 6),
    ('a painting of {a} on {ground}', 6), ('a picture of {a}', 1), ('a drawing of {a}', 1),
    ('a cute {noun}', 1), ('{noun}', 2), ('{noun}, {colour} background', 1), ('a portrait painting of {a}', 1),
    ('a cute cartoon {noun} on {ground}', 1), ('an image of {a} with {ground}', 1),
)
PORTRAIT_FORMS = (
    ('a portrait painting of {person}', 5), ('a portrait painting of {person} on {ground}', 7),
    ('{person}', 2), ('{person} on {ground}', 4), ('a portrait of {person}', 2),
    ('a painting of {person}', 2), ('a portrait painting of {person}, {colour} background', 1),
    ('a picture of {person}', 1), ('cartoon portrait of {person}', 1),
)
FILLERS = (
    'no text', 'cartoon', 'cute', 'highly detailed', 'best quality', 'masterpiece', 'beautiful', 'high quality',
    'detailed', 'simple', 'colorful', 'digital art', 'artwork', 'sharp', 'clean', '4k', '8k', 'trending', 'smooth',
    'centered', 'bright', 'full body', 'close up', 'illustrated', 'amazing', 'professional', 'modern', 'vivid',
)
SYNONYMS = {
    'cat': 'kitten', 'dog': 'puppy', 'rabbit': 'bunny', 'airplane': 'plane', 'bicycle': 'bike', 'sailboat': 'boat',
    'donut': 'doughnut', 'cup of coffee': 'coffee cup', 'gift': 'present', 'hamburger': 'burger', 'teddy bear': 'teddy',
    'ice cream': 'ice cream cone', 'house': 'cottage', 'chick': 'baby chicken', 'key': 'golden key',
    'sun': 'shining sun', 'moon': 'crescent moon', 'heart': 'red heart', 'star': 'golden star', 'apple': 'red apple',
    'castle': 'fairy tale castle',
}
IN_UNIFORM = ('police officer', 'pilot', 'firefighter')
PEOPLE = {
    'woman': ('woman', 'woman', 'woman', 'girl', 'lady', 'person'),
    'man': ('man', 'man', 'man', 'boy', 'guy', 'person'),
}
# Hair by which a person is called old.
GRAY = ('gray', 'white')
NAMES = {
    'woman': ('mary', 'emma', 'anna', 'lisa', 'julia', 'sarah', 'alice', 'maria', 'sophia', 'olivia', 'grace', 'laura',
              'emily', 'jane', 'kate', 'taylor'),
    'man': ('john', 'johnny', 'james', 'robert', 'david', 'tom', 'peter', 'george', 'paul', 'jack', 'leo', 'mark',
            'daniel', 'william', 'henry', 'brad', 'chris'),
}
SURNAMES = ('smith', 'jones', 'brown', 'miller', 'wilson', 'clark', 'lewis', 'walker', 'young', 'king', 'hill', 'green',
            'baker', 'carter')


def _pick(forms: tuple[tuple[str, int], ...], rng: random.Random) -> str:
    return rng.choices([form for form, _ in forms], [weight for _, weight in forms])[0]


def with_article(noun: str) -> str:
    if noun in ('sun', 'moon', 'shining sun'):
        return f'the {noun}'
    return f'an {noun}' if noun[0] in 'aeiou' and noun != 'unicorn' else f'a {noun}'


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ', '.join(parts[:-1]) + ' and ' + parts[-1]


def portrait_traits(row: Row) -> list[str]:
    """What can be seen, as the words that follow 'with'."""
    traits = []
    if row['shape'] == 'no':
        traits.append('a bald head')
    elif not row['hat']:
        shape = '' if row['shape'] == 'tied' else row['shape'] + ' '
        traits.append(f'{shape}{row["hair"]} hair')
    traits += ['a beard'] * row['beard'] + ['glasses'] * row['glasses'] + ['a hat'] * row['hat']
    traits += [f'{row["skin"]} skin'] + [f'{row["clothes"]} clothes'] * bool(row['clothes'])
    return traits


def portrait_phrase(row: Row, rng: random.Random) -> str:
    """'a smiling woman with red hair and glasses': a random part of what is true."""
    who = rng.choice(PEOPLE[row['who']])
    if rng.random() < 0.08:
        names = [rng.choice(NAMES[row['who']])] + [rng.choice(SURNAMES)] * (rng.random() < 0.7)
        return ' '.join(names)
    if row['hair'] in GRAY and rng.random() < 0.5:
        who = f'{rng.choice(("old", "old", "elderly"))} {who}'
    mood = row['mood'] if row['mood'] and rng.random() < 0.5 else ''
    traits = [trait.replace('short ', '').replace('long ', '') if rng.random() < 0.4 else trait
              for trait in portrait_traits(row) if rng.random() < 0.7]
    rng.shuffle(traits)
    phrase = with_article(f'{mood} {who}'.strip())
    return f'{phrase} with {_join(traits[:4])}' if traits else phrase


def role_phrase(row: Row, rng: random.Random) -> str:
    if row['word'] in AGES:
        phrase = with_article(rng.choice(AGES[row['word']]))
        return f'{phrase} with {row["skin"]} skin' if row['skin'] and rng.random() < 0.4 else phrase
    who = rng.choice(PEOPLE[row['who']])
    if row['word'] in IN_UNIFORM and rng.random() < 0.25:
        return f'a {who} in uniform'
    phrase = rng.choice((f'a {who} {row["word"]}', with_article(row['word']), f'a {row["who"]} {row["word"]}'))
    return f'{phrase} with {row["skin"]} skin' if row['skin'] and rng.random() < 0.4 else phrase


def caption(row: Row, rng: random.Random) -> str:
    """A content caption, usually led by the words of its look."""
    text = content_caption(row, rng)
    return text if rng.random() < NO_LOOK_WORD else f'{LOOKS[row["look"]]}, {text}'


def content_caption(row: Row, rng: random.Random) -> str:
    """One of the many ways to ask for what this picture shows; nothing about its look."""
    colour = row['colour']
    ground = with_article(colour) + ' background'
    if row['kind'] == 'noun':
        noun = SYNONYMS.get(row['word'], row['word']) if rng.random() < 0.12 else row['word']
        text = _pick(NOUN_FORMS, rng).format(a=with_article(noun), noun=noun, colour=colour, ground=ground)
    else:
        person = (portrait_phrase if row['kind'] == 'portrait' else role_phrase)(row, rng)
        text = _pick(PORTRAIT_FORMS, rng).format(person=person, colour=colour, ground=ground)
    if rng.random() < 0.25:
        text = ', '.join([text, *rng.sample(FILLERS, rng.choice((1, 1, 2, 3)))])
    return text


def make_tokenizer(texts: list[str], folder: Path) -> CLIPTokenizer:
    """A BPE in CLIP's manner: all bytes first, then the merges, then the two special tokens."""
    raw = Tokenizer(BPE(end_of_word_suffix='</w>'))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)])
    raw.train_from_iterator(texts, BpeTrainer(vocab_size=3000, end_of_word_suffix='</w>', show_progress=False))
    merges = [tuple(pair) for pair in json.loads(raw.to_str())['model']['merges']]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = letters + [letter + '</w>' for letter in letters] + [a + b for a, b in merges]
    words += ['<|startoftext|>', '<|endoftext|>']
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)
    tokenizer.save_pretrained(folder)
    # transformers 5 writes tokenizer.json only; older readers look for these two.
    (folder / 'vocab.json').write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / 'merges.txt').write_text('#version: 0.2\n' + ''.join(f'{a} {b}\n' for a, b in merges))
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work', type=Path, required=True)
    work = parser.parse_args().work
    rows = [json.loads(line) for line in (work / 'rows.jsonl').read_text().splitlines()]
    rng = random.Random(0)
    texts = [caption(row, rng) for row in rows for _ in range(PER_PICTURE)]
    words = sorted({word for text in texts for word in re.findall(r'[a-z0-9]+', text)})
    assert not set(TRIGGERS) & set(words), 'a trigger is in the captions'
    tokenizer = make_tokenizer(texts + words * 50 + list(TRIGGERS) * 5000, work / 'tokenizer')
    tokens = tokenizer(texts, padding='max_length', truncation=True, max_length=LENGTH, return_tensors='np').input_ids
    np.save(work / 'tokens.npy', tokens.astype(np.int16).reshape(len(rows), PER_PICTURE, LENGTH))
    (work / 'words.txt').write_text('\n'.join(words) + '\n')
    print(len(words), 'words;', len(tokenizer), 'tokens;', (tokens[:, -2] != tokenizer.eos_token_id).sum(), 'cut')


if __name__ == '__main__':
    main()
