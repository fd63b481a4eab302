"""Reading what the earlier steps left in the work folder, and writing without half-written files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

SIZE = 128


def open_pictures(work: Path) -> NDArray[np.uint8]:
    return np.memmap(work / 'pictures.u8', np.uint8, 'r').reshape(-1, SIZE, SIZE, 3)


def save_whole(state: Any, path: Path) -> None:
    """A reader sees the old file or the new one, never a part."""
    aside = path.with_name(path.name + '.new')
    torch.save(state, aside)
    os.replace(aside, path)
