"""What is asked: prompts whose wording training never saw, each with the picture that would be a perfect answer."""
from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mini_training import portraits as faces
from mini_training.captions import with_article
from mini_training.looks import COLOURS
from mini_training.portraits import CLOTHES, HAIR, HANDS, HANDS_OF_LOOK, SKIN, dicebear_options, draw_portrait
from mini_training.render import held_out, sample_role
from mini_training.subjects import AGES, ICON_OF, ICON_SETS, LOOKS, NOUNS, ROLES, Row

Job = dict[str, Any] | None
CONCEPTS = (*NOUNS, *ROLES, *AGES, 'woman', 'man')
# None of these frames is a template of mini_training.captions, though each of their words is in it.
NOUN_FRAMES = ('a picture of {a} on {ground}', 'a drawing of {a} on {ground}', 'a cute {noun} on {ground}',
               'a beautiful {noun}, {colour} background')
PORTRAIT_FRAMES = ('a drawing of {a} on {ground}', 'a picture of {a} on {ground}',
                   'cartoon portrait of {a} on {ground}')
EXTRAS = {'glasses': 'glasses', 'beard': 'a beard', 'hat': 'a hat'}


@dataclass(frozen=True)
class Ask:
    """A request, what must be seen in its picture (`asked`), and the training row and DiceBear job of a right one."""
    group: str
    text: str
    style: str | None
    seed: int
    row: Row
    job: Job
    asked: dict[str, str]
    trigger: bool = True

    @property
    def look(self) -> str:
        return str(self.row['look'])

    def request(self) -> dict[str, Any]:
        return {'text': self.text, 'style': self.style, 'seed': self.seed, 'trigger': self.trigger}


@dataclass
class Chooser:
    """Chance for one group of asks; the group's name is the seed."""
    group: str
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.group)

    def ground(self, word: str, kept_out: bool = False) -> str | None:
        """A background colour that `word` was (or was never) drawn on in training; None where there is none."""
        fitting = [c for c in COLOURS if word not in NOUNS or held_out(word, c) == kept_out]
        return self.rng.choice(fitting) if fitting else None

    def pair(self, kept_out: bool) -> tuple[str, str]:
        """Hair and clothes that were (or were never) drawn together."""
        while True:
            hair, clothes = self.rng.choice(tuple(HAIR)), self.rng.choice(tuple(CLOTHES))
            if faces.held_out({'hair': hair, 'clothes': clothes}) == kept_out:
                return hair, clothes


def picture_of(word: str, look: str, colour: str, rng: random.Random, **wanted: Any) -> tuple[Row, Job]:
    """A training row (and a portrait's job) that shows the concept `word`; `wanted` are traits of a person."""
    job: Job = None
    if word in ('woman', 'man'):
        row, job = portrait(look, rng, who=word, **wanted)
    elif word in NOUNS:
        row = {'kind': 'noun', 'look': look, 'word': word, 'icon': ICON_OF.get(word, word.replace(' ', '-')),
               'bust': False}
    else:
        wanted['word'] = word
        row = next(row for row in iter(lambda: sample_role(look, rng), None) if wanted.items() <= row.items())
    return row | {'colour': colour, 'set': rng.choices(ICON_SETS[look], (3, 1))[0]}, job


def portrait(look: str, rng: random.Random, **wanted: Any) -> tuple[Row, Job]:
    """draw_portrait's chance, bent to what is wanted: only a hand that can show it is taken."""
    while True:
        row, _ = draw_portrait(look, rng)
        row |= wanted
        if can_show(row, wanted):
            return row, {'style': row['hand'], 'options': dicebear_options(row, HANDS[row['hand']], rng)}


def can_show(row: Row, wanted: dict[str, Any]) -> bool:
    hand = HANDS[row['hand']]
    return (row['shape'] in hand.hair[row['who']] and (row['who'] == 'man' or not row['beard'])
            and (row['hand'] == 'personas' or not row['hat']) and (row['hand'] != 'toonHead' or not row['glasses'])
            and (hand.bust or not row['clothes']) and ('hair' not in wanted or hair_is_seen(row)))


def hair_is_seen(row: Row) -> bool:
    return row['shape'] != 'no' and not row['hat']


def concept_of(row: Row) -> str:
    return str(row['who'] if row['kind'] == 'portrait' else row['word'])


def concept_ask(chooser: Chooser, word: str, style: str, seed: int, kept_out: bool = False) -> Ask:
    colour = chooser.ground(word, kept_out)
    assert colour is not None
    row, job = picture_of(word, style, colour, chooser.rng)
    noun = AGES[word][0] if word in AGES else f'{row["who"]} {word}' if row['kind'] == 'role' else word
    frames = NOUN_FRAMES if row['kind'] == 'noun' else PORTRAIT_FRAMES
    text = in_frame(frames, noun, colour, chooser.rng)
    return Ask(chooser.group, text, style, seed, row, job, {'concept': word, 'background': colour})


def in_frame(frames: Sequence[str], noun: str, colour: str, rng: random.Random) -> str:
    ground = with_article(f'{colour} background')
    return rng.choice(frames).format(a=with_article(noun), noun=noun, colour=colour, ground=ground)


def portrait_ask(chooser: Chooser, style: str, seed: int, extra: str = '', kept_out: bool = False) -> Ask:
    """A person with hair and clothes of a colour, often a skin tone and a mood, and one of EXTRAS."""
    rng = chooser.rng
    if extra == 'hat' and 'personas' not in HANDS_OF_LOOK[style]:     # the only hand with hats
        extra = 'glasses'
    hair, clothes = chooser.pair(kept_out)
    wanted: dict[str, Any] = {'clothes': clothes} if extra == 'hat' else {'hair': hair, 'clothes': clothes}
    wanted |= {'skin': rng.choice(tuple(SKIN))} if rng.random() < 0.6 else {}
    wanted |= {'mood': rng.choice(('smiling', 'sad'))} if rng.random() < 0.6 else {}
    wanted |= {extra: True} if extra else {}
    who = 'man' if extra in ('beard', 'hat') else rng.choice(('woman', 'man'))
    return person_ask(chooser, style, seed, who, wanted)


def person_ask(chooser: Chooser, style: str, seed: int, who: str, wanted: dict[str, Any]) -> Ask:
    colour = chooser.rng.choice(tuple(COLOURS))
    row, job = picture_of(who, style, colour, chooser.rng, **wanted)
    traits = [f'{wanted[name]} {name}' for name in ('hair',) if name in wanted]
    traits += [words for name, words in EXTRAS.items() if wanted.get(name)]
    traits += [f'{wanted[name]} {name}' for name in ('skin', 'clothes') if name in wanted]
    noun = ' '.join(filter(None, (wanted.get('mood'), who)))
    noun += f' with {" and ".join(filter(None, (", ".join(traits[:-1]), traits[-1])))}' if traits else ''
    asked = {name: 'yes' if value is True else value for name, value in wanted.items()}
    return Ask(chooser.group, in_frame(PORTRAIT_FRAMES, noun, colour, chooser.rng), style, seed, row, job,
               asked | {'who': who, 'background': colour})


def all_asks(pictures: int) -> list[Ask]:
    """The evaluation, about `pictures` of them. Groups are scaled alike, each takes its prompts in a fixed order."""
    scale = pictures / 700
    return [*concepts('concepts', round(165 * scale)), *with_look_words(round(60 * scale)),
            *held_out_nouns(round(60 * scale)), *portraits('portraits', round(115 * scale)),
            *portraits('held_out_portraits', round(60 * scale), kept_out=True),
            *untriggered(round(60 * scale)), *seeds(max(2, round(8 * scale))), *sheet(max(2, round(12 * scale)))]


def concepts(group: str, count: int) -> list[Ask]:
    """Every concept in one look, then every one in the next look."""
    chooser = Chooser(group)
    words, looks = chooser.rng.sample(CONCEPTS, len(CONCEPTS)), tuple(LOOKS)
    places = [divmod(i, len(words)) for i in range(count)]
    return [concept_ask(chooser, words[i], looks[(i + lap) % len(looks)], seed)
            for seed, (lap, i) in enumerate(places)]


def with_look_words(count: int) -> list[Ask]:
    """The base without a LoRA: the look asked for in the words that it was trained on."""
    return [replace(ask, text=f'{LOOKS[ask.look]}, {ask.text}', style=None)
            for ask in concepts('base_concepts', count)]


def held_out_nouns(count: int) -> list[Ask]:
    chooser, looks = Chooser('held_out_nouns'), tuple(LOOKS)
    words = [word for word in NOUNS if chooser.ground(word, kept_out=True)]
    chooser.rng.shuffle(words)
    return [concept_ask(chooser, words[i % len(words)], looks[i % len(looks)], i, kept_out=True) for i in range(count)]


def portraits(group: str, count: int, kept_out: bool = False) -> list[Ask]:
    chooser, looks = Chooser(group), tuple(LOOKS)
    extras = ('glasses', 'beard') if kept_out else ('glasses', 'beard', 'hat')     # a hat hides the hair
    return [portrait_ask(chooser, looks[i % len(looks)], i, extras[i // len(looks) % len(extras)], kept_out)
            for i in range(count)]


DOZEN = ('fox', 'robot', 'sunflower', 'castle', 'hamburger', 'rocket', 'penguin', 'firefighter', 'wizard',
         ('woman', {'hair': 'red', 'glasses': True}), ('man', {'beard': True, 'clothes': 'blue'}),
         ('woman', {'mood': 'smiling', 'hair': 'blond', 'clothes': 'green'}))


def dozen(group: str, i: int, style: str, seed: int) -> Ask:
    """The i-th of twelve fixed prompts, the same words whatever the style and the seed; what they leave open varies."""
    chooser, what = Chooser(group), DOZEN[i]
    chooser.rng = random.Random(i)
    who, wanted = (what, {}) if isinstance(what, str) else what
    ask = person_ask(chooser, style, seed, who, wanted) if wanted else concept_ask(chooser, who, style, seed)
    if ask.row['kind'] == 'role':
        wanted = {'who': ask.row['who']}
    row, job = picture_of(who, style, ask.asked['background'], random.Random(f'{i} {style} {seed}'), **wanted)
    return replace(ask, row=row, job=job)


def untriggered(count: int) -> list[Ask]:
    """A style's LoRA on but its trigger left out, and the base alone with the same words and seeds."""
    looks = tuple(LOOKS)
    asks = [dozen('untriggered', i % 12, looks[i % len(looks)], i // 12) for i in range(count)]
    return [*(replace(ask, trigger=False) for ask in asks), *(replace(ask, group='base', style=None) for ask in asks)]


def seeds(prompts: int) -> list[Ask]:
    """Eight seeds of each prompt, which keeps its style."""
    looks = tuple(LOOKS)
    return [dozen('seeds', i, looks[i % len(looks)], seed) for i in range(min(12, prompts)) for seed in range(8)]


def sheet(prompts: int) -> list[Ask]:
    """Row i: the i-th prompt in every style, all with seed i."""
    return [dozen('sheet', i, look, i) for i in range(min(12, prompts)) for look in LOOKS]
