"""What `modelscope_cartoon` gives by name, imported when it is asked for."""
from __future__ import annotations

import gc
import sys

import pytest

import modelscope_cartoon


@pytest.mark.parametrize('on', [True, False])
def test_an_import_goes_without_the_collector_and_leaves_it_as_it_was(on, tmp_path, monkeypatch):
    (tmp_path / 'looks_at_gc.py').write_text('import gc\nanswer = gc.isenabled()\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(modelscope_cartoon._LAZY, 'answer', 'looks_at_gc')
    (gc.enable if on else gc.disable)()
    try:
        assert (modelscope_cartoon.answer, gc.isenabled()) == (False, on)
    finally:
        gc.enable()
        sys.modules.pop('looks_at_gc', None)


def test_the_collector_is_back_after_an_import_that_failed(tmp_path, monkeypatch):
    (tmp_path / 'raises.py').write_text('raise OSError("no")\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(modelscope_cartoon._LAZY, 'broken', 'raises')
    with pytest.raises(OSError, match='no'):
        print(modelscope_cartoon.broken)
    assert gc.isenabled()
