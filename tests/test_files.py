"""Saving (failures.md, section 3): a full disk or a kill leaves the old file or the new one, and nothing else."""
from __future__ import annotations

import errno
import itertools
import os
import random
import signal
import time
from pathlib import Path

import pytest

from modelscope_cartoon.errors import OutputError
from modelscope_cartoon.files import write_file

posix = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fork(work) -> int:
    """The process id of a child that runs `work` and exits with 0, or 1 where it raises."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def test_a_file_is_written_whole_and_new_folders_are_made(tmp_path):
    path = write_file(tmp_path / 'new' / 'folder' / 'a.png', b'data')
    assert path.read_bytes() == b'data' and names(path.parent) == ['a.png']
    assert write_file(path, b'other').read_bytes() == b'other' and names(path.parent) == ['a.png']


@pytest.mark.skipif(os.name == 'nt', reason='no such rights on Windows')
def test_a_file_gets_the_rights_that_the_user_gives_new_files(tmp_path):
    assert write_file(tmp_path / 'a', b'').stat().st_mode & 0o777 == 0o666 & ~int(os.popen('umask').read(), 8)


@pytest.mark.parametrize('call', ['open', 'fsync', 'replace'])
def test_a_full_disk_leaves_the_old_file_and_no_leftovers(tmp_path, monkeypatch, call):
    path = write_file(tmp_path / 'a.png', b'old')

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OutputError, match=r'a\.png could not be written \(No space left') as caught:
        write_file(path, b'new')
    assert caught.value.code == 'cannot_write' and isinstance(caught.value, OSError)
    assert path.read_bytes() == b'old' and names(tmp_path) == ['a.png']


@posix
def test_a_file_larger_than_allowed_leaves_the_old_one_and_no_leftovers(tmp_path):
    import resource
    path = write_file(tmp_path / 'a.png', b'old')

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(OutputError, match='File too large'):
            write_file(path, bytes(100_000))
    assert os.waitpid(fork(work), 0)[1] == 0
    assert path.read_bytes() == b'old' and names(tmp_path) == ['a.png']


def test_a_folder_that_can_not_be_made_is_said_and_a_folder_is_no_file(tmp_path):
    (tmp_path / 'file').write_bytes(b'')
    (tmp_path / 'folder').mkdir()
    for path in (tmp_path / 'file' / 'a.png', tmp_path / 'folder'):
        with pytest.raises(OutputError, match='could not be written'):
            write_file(path, b'new')
    assert names(tmp_path) == ['file', 'folder'] and names(tmp_path / 'folder') == []


@pytest.mark.parametrize('name', ['画' * 82 + '.png', 'é' * 120, 'x' * 255])
def test_a_name_as_long_as_the_file_system_takes_can_be_written(tmp_path, name):
    write_file(tmp_path / name, b'new')
    assert names(tmp_path) == [name]


@pytest.mark.parametrize('name', ['画' * 90, 'x' * 256])
def test_a_longer_name_is_an_error_and_leaves_nothing(tmp_path, name):
    with pytest.raises(OutputError, match='name too long'):
        write_file(tmp_path / name, b'new')
    assert names(tmp_path) == []


@posix
def test_a_folder_that_can_not_be_flushed_does_not_fail_what_is_written(tmp_path, monkeypatch):
    fsync = os.fsync

    def only_files(handle: int) -> None:
        if os.path.isdir(f'/dev/fd/{handle}'):
            raise OSError(errno.EINVAL, 'Invalid argument')
        fsync(handle)
    monkeypatch.setattr(os, 'fsync', only_files)
    assert write_file(tmp_path / 'a', b'new').read_bytes() == b'new'


def test_ctrl_c_while_saving_leaves_the_old_file_and_no_leftovers(tmp_path, monkeypatch):
    path = write_file(tmp_path / 'a.png', b'old')

    def stop(_: int) -> None:
        raise KeyboardInterrupt
    monkeypatch.setattr(os, 'fsync', stop)
    with pytest.raises(KeyboardInterrupt):
        write_file(path, b'new')
    assert path.read_bytes() == b'old' and names(tmp_path) == ['a.png']


@posix
def test_a_kill_while_saving_always_leaves_a_whole_file(tmp_path):
    path = write_file(tmp_path / 'a.png', bytes([0]) * 300_000)

    def save_for_ever() -> None:
        for value in itertools.count(9 * i + 1):
            write_file(path, bytes([value % 256]) * 300_000)
    seen = set()
    for i in range(25):
        before, end = path.stat().st_mtime_ns, time.monotonic() + 10
        child = fork(save_for_ever)
        while path.stat().st_mtime_ns == before and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(random.Random(i).uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        data = path.read_bytes()
        assert len(data) == 300_000 and len(set(data)) == 1
        seen.add(data[0])
    assert len(seen) > 9     # it was really saving
