"""kill -9 at any moment, a full disk, two commands at once: nothing lost, nothing twice, no half file."""
from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from hosting import zygote  # noqa: F401

posix = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
pytestmark = posix


def test_killed_at_random_points_it_ends_with_the_files_of_an_unbroken_run(tiny_folder, zygote, tmp_path):  # noqa: F811
    counted = zygote.run(_kill, str(tiny_folder), tmp_path)
    assert counted['kills'] == 15 and len(set(counted['done_at_a_kill'])) > 3     # it was really at work


def _kill(model: str, folder: Path) -> dict:
    from benchmarks.kills import kill_and_compare
    return kill_and_compare(model, folder, kills=15, rows=16)


@pytest.mark.parametrize('point', ['before a rename', 'after a rename', 'before the record', 'after the record',
                                   'in the manifest'])
def test_killed_between_any_two_steps_of_keeping_it_goes_on_to_the_same_files(point, tiny_folder, zygote,  # noqa: F811
                                                                              tmp_path):
    zygote.run(_die_at, point, str(tiny_folder), tmp_path)


def _die_at(point: str, model: str, folder: Path) -> None:
    from benchmarks import kills

    jobs = kills.write_jobs(folder / 'jobs.jsonl', 9, 1)
    assert kills.wait(kills.start(model, jobs, folder / 'unbroken')) == 1
    assert kills.wait(kills.fork(lambda: _run_and_die(point, model, jobs, folder / 'killed'))) == -signal.SIGKILL
    done = kills.recorded(folder / 'killed')
    assert bool(done) == (point in ('after the record', 'in the manifest'))
    log = folder / 'log.txt'
    assert kills.wait(kills.start(model, jobs, folder / 'killed', log)) == 1
    assert not done & set(kills.draws(log)) and len(done | set(kills.draws(log))) == 9
    assert kills.contents(folder / 'killed') == kills.contents(folder / 'unbroken')


def _run_and_die(point: str, model: str, jobs: Path, output: Path) -> int:
    from modelscope_cartoon.batch import keeping, manifest
    from modelscope_cartoon.batch.ledger import Ledger
    from modelscope_cartoon.cli import main

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def replaced_and_dead(aside: Path, path: Path) -> None:
        os.rename(aside, path)
        die()
    if point == 'after the record':
        settled = keeping.Keeper.keep

        def kept_and_dead(*arguments: object) -> None:
            settled(*arguments)
            die()
        keeping.Keeper.keep = kept_and_dead
    elif point == 'before the record':
        Ledger.record = die
    elif point == 'in the manifest':
        manifest.sync_folder = die
    else:
        keeping.os = type('os', (), {**vars(os), 'replace': staticmethod(
            die if point == 'before a rename' else replaced_and_dead)})
    os.environ['SOURCE_DATE_EPOCH'] = '0'
    return main(['batch', str(jobs), '-o', str(output), '--model', model, '--device', 'cpu'])


@pytest.mark.parametrize('limit', ['pictures', 'ledger'])
def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(limit, tiny_folder, zygote, tmp_path):  # noqa: F811
    code, told, done = zygote.run(_fill_the_disk, limit, str(tiny_folder), tmp_path)
    assert code == 1 and 'give the same command again' in told and 'Traceback' not in told
    assert 0 < done < 12


def _fill_the_disk(limit: str, model: str, folder: Path) -> tuple[int, str, int]:
    """The first rows are small and fit; then no file may grow beyond some size."""
    import resource

    from benchmarks import kills
    jobs = folder / 'jobs.jsonl'
    with jobs.open('w') as file:
        for i in range(12):
            size = 64 if i < 8 or limit == 'ledger' else 320
            row = {'text': f'a cat {i}', 'num_inference_steps': 1, 'height': size, 'width': size}
            file.write(json.dumps(row) + '\n')
    words = folder / 'said.txt'

    def until_full() -> int:
        os.environ['SOURCE_DATE_EPOCH'] = '0'
        from modelscope_cartoon.batch.keeping import Keeper
        from modelscope_cartoon.cli import main
        handle = os.open(words, os.O_CREAT | os.O_WRONLY)
        os.dup2(handle, 2)
        if limit == 'pictures':
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        else:
            keep, count = Keeper.keep, iter(range(100))

            def keep_and_limit(*arguments: object) -> object:
                events = keep(*arguments)
                if next(count) == 1:
                    size = (folder / 'full' / 'ledger.sqlite-wal').stat().st_size
                    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
                return events
            Keeper.keep = keep_and_limit
        return main(['batch', str(jobs), '-o', str(folder / 'full'), '--model', model, '--device', 'cpu'])
    code = kills.wait(kills.fork(until_full))
    done = kills.recorded(folder / 'full')
    log = folder / 'log.txt'
    assert kills.wait(kills.start(model, jobs, folder / 'full', log)) == 0
    assert kills.wait(kills.start(model, jobs, folder / 'unbroken')) == 0
    assert max(map(len, map(Path.read_bytes, (folder / 'full').glob('*.png')))) > 200_000 or limit == 'ledger'
    assert not done & set(kills.draws(log))
    assert kills.contents(folder / 'full') == kills.contents(folder / 'unbroken')
    return code, words.read_text(), len(done)


def test_two_commands_at_once_share_the_rows_and_the_one_that_is_left_ends_it(tiny_folder, zygote,  # noqa: F811
                                                                               tmp_path):
    zygote.run(_run_two, str(tiny_folder), tmp_path)


def _run_two(model: str, folder: Path) -> None:
    from benchmarks import kills
    jobs, logs = kills.write_jobs(folder / 'jobs.jsonl', 40, 4), [folder / 'one.txt', folder / 'two.txt']
    assert kills.wait(kills.start(model, jobs, folder / 'unbroken')) == 1
    one, two = (kills.start(model, jobs, folder / 'shared', log) for log in logs)
    end = time.monotonic() + 60
    while not all(len(kills.draws(log)) > 4 for log in logs) and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(one, signal.SIGKILL)
    os.waitpid(one, 0)
    assert kills.wait(two) == 1
    first, second = map(kills.draws, logs)
    assert len(first) > 4 and len(second) > 4
    assert len(set(first) & set(second)) <= 4, 'at most what the killed one had in hand is drawn by both'
    assert kills.contents(folder / 'shared') == kills.contents(folder / 'unbroken')


def test_ctrl_c_gives_the_leases_back_and_says_how_to_go_on(tiny_folder, zygote, tmp_path):  # noqa: F811
    code, told = zygote.run(_interrupt, str(tiny_folder), tmp_path)
    assert code == 130 and 'the same command goes on from there' in told and 'leased' not in told
    assert told.count('\n') == 2     # the column that is a tag, and this


def _interrupt(model: str, folder: Path) -> tuple[int, str]:
    from benchmarks import kills
    jobs = kills.write_jobs(folder / 'jobs.jsonl', 30, 4)

    def until_ctrl_c() -> int:
        import modelscope_cartoon.batch.crews as crews
        from modelscope_cartoon.cli import main
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(folder / 'said.txt', os.O_CREAT | os.O_WRONLY), 2)
        answers, count = crews.Alone.answers, iter(range(100))

        def answers_and_ctrl_c(*arguments: object) -> object:
            if next(count) == 2:
                signal.setitimer(signal.ITIMER_REAL, 0.01)
                signal.signal(signal.SIGALRM, signal.default_int_handler)
            return answers(*arguments)
        crews.Alone.answers = answers_and_ctrl_c
        return main(['batch', str(jobs), '-o', str(folder / 'out'), '--model', model, '--device', 'cpu'])
    code = kills.wait(kills.fork(until_ctrl_c))
    assert len(kills.recorded(folder / 'out')) > 4
    assert not list((folder / 'out').glob('.*')), 'nothing is left aside'
    assert kills.wait(kills.start(model, jobs, folder / 'out')) == 1
    return code, (folder / 'said.txt').read_text()
