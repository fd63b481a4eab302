"""The embedded model: a small Stable Diffusion that comes with the package and draws offline."""
from __future__ import annotations

from pathlib import Path

NAME = 'mini'


def path() -> Path:
    """Its folder, in diffusers' layout."""
    return Path(__file__).parent / 'base'
