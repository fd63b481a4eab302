"""What is drawn: looks, nouns and roles, and the icons that show them."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

LOOKS = {
    'design': 'soft airbrushed art',
    'watercolor': 'watercolor painting',
    'illustration': 'comic illustration',
    'clipart': 'clip art sticker',
    'flat': 'flat icon',
}

# Icons whose name differs from the word; the others are called by their word with hyphens.
ICON_OF = {
    'cat': 'cat-face', 'dog': 'dog-face', 'rabbit': 'rabbit-face', 'dragon': 'dragon-face', 'tiger': 'tiger-face',
    'monkey': 'monkey-face', 'pig': 'pig-face', 'cow': 'cow-face', 'horse': 'horse-face', 'mouse': 'mouse-face',
    'chick': 'baby-chick', 'whale': 'spouting-whale', 'bee': 'honeybee', 'apple': 'red-apple',
    'cake': 'birthday-cake', 'ice cream': 'soft-ice-cream', 'cup of coffee': 'hot-beverage', 'donut': 'doughnut',
    'car': 'automobile', 'train': 'locomotive', 'tree': 'deciduous-tree', 'mountain': 'snow-capped-mountain',
    'book': 'open-book', 'gift': 'wrapped-gift', 'moon': 'crescent-moon', 'heart': 'red-heart',
    'pumpkin': 'jack-o-lantern',
}

NOUNS = (
    'cat', 'dog', 'fox', 'panda', 'rabbit', 'owl', 'penguin', 'lion', 'elephant', 'butterfly', 'fish', 'dragon',
    'bear', 'tiger', 'monkey', 'pig', 'frog', 'unicorn', 'chick', 'turtle', 'whale', 'bee',
    'apple', 'strawberry', 'hamburger', 'pizza', 'cake', 'ice cream', 'cup of coffee', 'banana', 'donut',
    'car', 'bus', 'rocket', 'airplane', 'sailboat', 'bicycle', 'train',
    'house', 'castle', 'tree', 'mountain', 'sunflower', 'rose', 'cactus', 'mushroom',
    'robot', 'guitar', 'camera', 'umbrella', 'book', 'crown', 'key', 'balloon', 'gift', 'snowman', 'sun', 'moon',
    'star', 'heart', 'teddy bear', 'ghost', 'pumpkin',
)

# The usual hand of a look first; it is drawn three times in four, so that a noun keeps one main shape.
ICON_SETS = {
    'design': ('fluent-emoji', 'noto'), 'watercolor': ('fluent-emoji', 'noto'),
    'illustration': ('noto', 'fluent-emoji-flat'), 'clipart': ('fluent-emoji-flat', 'noto'),
    'flat': ('fluent-emoji-flat', 'fluent-emoji-flat'),
}

ROLE_ICON_OF = {'chef': 'cook', 'doctor': 'health-worker', 'wizard': 'mage'}
ROLES = (
    'firefighter', 'astronaut', 'chef', 'police officer', 'doctor', 'farmer', 'pilot', 'artist', 'scientist',
    'wizard', 'superhero',
)
# Children and the old, whose icons carry the same name; captions call them so.
AGES = {
    'boy': ('little boy', 'boy', 'child'), 'girl': ('little girl', 'girl', 'child'), 'baby': ('baby',),
    'old man': ('old man', 'grandfather', 'elderly man'), 'old woman': ('old woman', 'grandmother', 'elderly woman'),
}
TONE_SUFFIX = {'': '', 'light': '-light', 'medium': '-medium', 'dark': '-dark'}


def weight_of(row: Row) -> float:
    """How often a picture is trained on: a word's main hand more than the other, so that it keeps one shape."""
    return 1.0 if row['kind'] == 'portrait' or row['set'] == ICON_SETS[row['look']][0] else 0.3
