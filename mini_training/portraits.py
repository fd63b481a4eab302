"""Portraits: traits drawn by chance, and the DiceBear options that show them."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Any

from mini_training.subjects import Row

HAIR = {
    'black': '2c1b18', 'brown': '724133', 'blond': 'e5c068', 'red': 'c93305', 'gray': 'afafaf', 'white': 'eeeeee',
    'blue': '4a6fd0', 'pink': 'ea82b0', 'green': '3e9c4b', 'purple': '7a4bb5',
}
NATURAL_HAIR = ('black', 'brown', 'blond', 'red')
SKIN = {'light': 'f2d0b0', 'medium': 'c98a60', 'dark': '6f4630'}
CLOTHES = {
    'red': 'd62f2f', 'blue': '3f62e0', 'green': '3fa650', 'yellow': 'f0c02c', 'orange': 'f28a2e', 'purple': '7a48c0',
    'pink': 'f27aa6', 'black': '242424', 'white': 'f0f0f0', 'gray': '808080',
}
MOODS = ('smiling', 'sad', '')
HELD_OUT = 0.15


@dataclass(frozen=True)
class Hand:
    """One DiceBear drawing style: which of its options show which word."""

    style: str
    hair: dict[str, dict[str, tuple[str, ...]]]
    beards: tuple[str, ...]
    mouths: dict[str, tuple[str, ...]]
    bust: bool = True


HANDS = {
    'toonHead': Hand(
        'toonHead',
        {'woman': {'long': ('sideComed',), 'tied': ('bun',)}, 'man': {'short': ('undercut', 'sideComed'),
                                                                      'spiky': ('spiky',)}},
        ('fullBeard', 'chinMoustache', 'longBeard'),
        {'smiling': ('laugh', 'smile'), 'sad': ('sad',), '': ('smile',)},
    ),
    'personas': Hand(
        'personas',
        {'woman': {'long': ('long', 'extraLong'), 'short': ('bobCut', 'bobBangs'), 'tied': ('straightBun', 'pigtails')},
         'man': {'short': ('shortCombover', 'fade', 'buzzcut'), 'no': ('bald',)}},
        ('beardMustache', 'goatee', 'walrus'),
        {'smiling': ('bigSmile', 'smile'), 'sad': ('frown',), '': ('smile',)},
    ),
    'micah': Hand(
        'micah',
        {'woman': {'long': ('full',), 'short': ('pixie',)}, 'man': {'short': ('fonze', 'dannyPhantom'),
                                                                    'no': ('mrClean',)}},
        ('beard',),
        {'smiling': ('laughing', 'smile'), 'sad': ('sad', 'frown'), '': ('smile', 'smirk')},
    ),
    'adventurer': Hand(
        'adventurer',
        {'woman': {'long': ('long01', 'long05', 'long07', 'long17'), 'tied': ('long19', 'long15')},
         'man': {'short': ('short01', 'short07', 'short09', 'short11'), 'curly': ('short03',)}},
        ('mustache',),
        {'smiling': ('variant28', 'variant30'), 'sad': ('variant10', 'variant14'), '': ('variant26', 'variant28')},
        bust=False,
    ),
}

HANDS_OF_LOOK = {
    'design': ('toonHead', 'toonHead', 'personas'),
    'watercolor': ('toonHead', 'toonHead', 'personas'),
    'illustration': ('micah', 'micah', 'toonHead', 'adventurer'),
    'clipart': ('micah', 'toonHead', 'personas'),
    'flat': ('personas', 'toonHead'),
}


def held_out(row: Row) -> bool:
    """Pairs of hair and clothes that are never drawn, kept to see whether the words of a portrait combine."""
    pair = f'{row["hair"]}|{row["clothes"]}'
    return bool(row['clothes']) and hashlib.sha256(pair.encode()).digest()[0] < 256 * HELD_OUT


def draw_portrait(look: str, rng: random.Random) -> tuple[Row, dict[str, Any]]:
    """A caption row and the DiceBear job that shows it."""
    hand = HANDS[rng.choice(HANDS_OF_LOOK[look])]
    who = rng.choice(('woman', 'man'))
    shape = rng.choice(tuple(hand.hair[who]))
    row: Row = {
        'kind': 'portrait', 'look': look, 'hand': hand.style, 'bust': hand.bust, 'who': who, 'shape': shape,
        'hair': rng.choice(NATURAL_HAIR if rng.random() < 0.6 else tuple(HAIR)), 'skin': rng.choice(tuple(SKIN)),
        'clothes': rng.choice(tuple(CLOTHES)) if hand.bust else '', 'mood': rng.choice(MOODS),
        'beard': who == 'man' and rng.random() < 0.4, 'glasses': hand.style != 'toonHead' and rng.random() < 0.35,
        'hat': hand.style == 'personas' and rng.random() < 0.25,
    }
    while held_out(row):
        row['clothes'] = rng.choice(tuple(CLOTHES))
    return row, {'style': hand.style, 'options': dicebear_options(row, hand, rng)}


def dicebear_options(row: Row, hand: Hand, rng: random.Random) -> dict[str, Any]:
    """Every option a caption can speak of is set; only eyes, eyebrows and noses are left to the seed."""
    beard, glasses = 100 * row['beard'], 100 * row['glasses']
    options: dict[str, Any] = {
        'seed': str(rng.random()), 'hair': [rng.choice(hand.hair[row['who']][row['shape']])], 'hairProbability': 100,
        'hairColor': [HAIR[row['hair']]], 'skinColor': [SKIN[row['skin']]],
        'mouth': [rng.choice(hand.mouths[row['mood']])], 'glassesProbability': glasses,
        'featuresProbability': 0, 'earringsProbability': 0,
    }
    options |= EXTRAS[hand.style](row, hand, beard, glasses, rng)
    return options


def _toon_head(row: Row, hand: Hand, beard: int, _glasses: int, rng: random.Random) -> dict[str, Any]:
    woman = row['who'] == 'woman'
    return {
        'beard': [rng.choice(hand.beards)], 'beardProbability': beard, 'clothesColor': [CLOTHES[row['clothes']]],
        'rearHair': [rng.choice(('longStraight', 'longWavy', 'shoulderHigh'))],
        'rearHairProbability': 100 * (woman and row['shape'] == 'long'),
        'eyes': [rng.choice(('happy', 'wide', 'humble'))],
        'clothes': [rng.choice(('dress', 'tShirt', 'turtleNeck') if woman else ('tShirt', 'turtleNeck', 'shirt'))],
        'eyebrows': ['sad' if row['mood'] == 'sad' else 'neutral'],
    }


def _personas(row: Row, hand: Hand, beard: int, glasses: int, rng: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {
        'facialHair': [rng.choice(hand.beards)], 'facialHairProbability': beard,
        'clothingColor': [CLOTHES[row['clothes']]], 'body': [rng.choice(('squared', 'rounded'))],
        'eyes': ['glasses' if glasses else rng.choice(('open', 'happy'))],
    }
    if row['hat']:
        options['hair'] = [rng.choice(('cap', 'beanie'))]
    return options


def _micah(row: Row, hand: Hand, beard: int, _glasses: int, rng: random.Random) -> dict[str, Any]:
    woman = row['who'] == 'woman'
    return {
        'baseColor': [SKIN[row['skin']]], 'shirtColor': [CLOTHES[row['clothes']]], 'facialHairProbability': beard,
        'facialHair': list(hand.beards), 'facialHairColor': [HAIR[row['hair']]], 'glassesColor': ['000000'],
        'glasses': [rng.choice(('round', 'square'))], 'eyes': [rng.choice(('eyes', 'round', 'smiling'))],
        'eyebrows': ['eyelashesUp' if woman else 'up'],
    }


def _adventurer(row: Row, hand: Hand, beard: int, _glasses: int, rng: random.Random) -> dict[str, Any]:
    return {'features': list(hand.beards), 'featuresProbability': beard, 'glasses': ['variant01', 'variant02']}


EXTRAS = {'toonHead': _toon_head, 'personas': _personas, 'micah': _micah, 'adventurer': _adventurer}
