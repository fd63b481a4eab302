from __future__ import annotations

import base64
import io

import cv2
import numpy as np
import pytest
from PIL import Image

from modelscope_cartoon.errors import UnknownOption
from modelscope_cartoon.formats import ROWS, format_of_suffix, get_format


@pytest.fixture
def picture() -> np.ndarray:
    """64 x 48, smooth, red on the left and blue on the right: channel order shows."""
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[None, :, None].repeat(48, axis=0)
    return np.concatenate([1 - ramp, np.full_like(ramp, 0.25), ramp], axis=2)


def test_bgr_is_what_opencv_writes_in_the_right_colours(picture, tmp_path):
    cv2.imwrite(str(tmp_path / 'p.png'), get_format('bgr').convert(picture))
    assert np.array_equal(np.array(Image.open(tmp_path / 'p.png')), get_format('rgb').convert(picture))


def test_rgb_and_pil_hold_the_same_rounded_bytes(picture):
    rgb = get_format('rgb').convert(picture)
    assert rgb.dtype == np.uint8 and rgb[0, 0].tolist() == [255, 64, 0]
    assert np.array_equal(np.array(get_format('pil').convert(picture)), rgb)
    assert get_format('np').convert(picture) is picture


@pytest.mark.parametrize('name, reader', [('png', 'PNG'), ('jpeg', 'JPEG'), ('webp', 'WEBP')])
def test_encoded_formats_are_read_back_by_another_reader(picture, name, reader):
    data = get_format(name).convert(picture)
    assert Image.open(io.BytesIO(data)).format == reader
    decoded = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.abs(decoded.astype(int) - get_format('rgb').convert(picture)).mean() < 3


def test_base64_is_a_png(picture):
    decoded = Image.open(io.BytesIO(base64.b64decode(get_format('base64').convert(picture))))
    assert np.array_equal(np.array(decoded), get_format('rgb').convert(picture))


def test_file_endings_find_their_format_and_unknown_ones_are_refused():
    assert format_of_suffix('.JPG').name == 'jpeg'
    with pytest.raises(UnknownOption, match=r"unknown file ending '.gif'; accepted: .png"):
        format_of_suffix('.gif')


def test_names_are_unique():
    assert len({row.name for row in ROWS}) == len(ROWS)
