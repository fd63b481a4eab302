"""The ledger's promises: who has which row, for how long, and what becomes of it."""
from __future__ import annotations

import json
import sqlite3
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelscope_cartoon.batch import ledger as ledgers
from modelscope_cartoon.batch.artist import Drawn, Refused
from modelscope_cartoon.batch.driver import Heartbeat, reclaim
from modelscope_cartoon.batch.jobs import job_of
from modelscope_cartoon.batch.keeping import Death, Keeper
from modelscope_cartoon.batch.ledger import Ledger
from modelscope_cartoon.batch.manifest import write_manifest
from modelscope_cartoon.batch.presence import Presence
from modelscope_cartoon.batch.queueing import missing, queue
from modelscope_cartoon.errors import InvalidRequest, OutputError


def jobs(*texts: str, **more):
    return [job_of({'text': text, **more}, 'mini') for text in texts]


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path, 'me')
    yield ledger
    ledger.close()


def keeper(ledger: Ledger, tries: int = 3) -> Keeper:
    aside = ledger.path.parent / 'aside'
    aside.mkdir(exist_ok=True)
    return Keeper(ledger, ledger.path.parent, aside, '.png', tries)


def drawn(*leased) -> list[Drawn]:
    return [Drawn([job.id.encode()], [{'request': job.request}], 0.1) for job in leased]


def texts(leased) -> list[str]:
    return [job.request['text'] for job in leased]


def test_rows_are_queued_once_however_often_they_are_given(ledger):
    assert queue(ledger, jobs('a', 'b', 'a')) == (3, 3, 0)
    assert queue(ledger, jobs('a', 'b', 'a', 'c')) == (4, 1, 0)
    ids = [entry.id for entry in ledger.entries('queued')]
    assert len(set(ids)) == 4 and ledger.counts()['queued'] == 4


def test_rows_that_left_the_file_are_forgotten_unless_they_are_drawn(ledger):
    queue(ledger, jobs('a', 'b', 'c'))
    [first] = ledger.lease('w', 1)
    keeper(ledger).keep('w', [first], drawn(first))
    assert queue(ledger, jobs('c', 'd')) == (2, 1, 1)
    assert [(entry.request['text'], entry.state) for entry in ledger.entries('queued', 'done')] == [
        ('a', 'done'), ('c', 'queued'), ('d', 'queued')]


def test_a_lease_is_of_one_group_whatever_the_order_of_the_rows(ledger):
    queue(ledger, [job for i in range(4) for job in (*jobs(f'slow {i}'), *jobs(f'quick {i}', preset='fast'))])
    first = ledger.lease('w', 3)
    assert texts(first) == ['slow 0', 'slow 1', 'slow 2']
    assert texts(ledger.lease('w', 3, first[0].batch)) == ['slow 3']
    assert texts(ledger.lease('w', 3, first[0].batch)) == ['quick 0', 'quick 1', 'quick 2']
    assert texts(ledger.lease('w', 3)) == ['quick 3'] and ledger.lease('w', 3) == []


def test_the_same_rows_come_together_again_after_a_kill(ledger):
    queue(ledger, jobs(*'abcdefg'))
    kept = ledger.lease('w', 3)
    lost = ledger.lease('w', 3)
    keeper(ledger).keep('w', kept, drawn(*kept))
    with ledger.transaction():
        assert ledger.take_back(['me']) == 3
    queue(ledger, jobs(*'abcdefgh'))
    assert ledger.lease('w', 3) == lost and texts(ledger.lease('w', 3)) == ['g', 'h']


def test_a_row_that_is_queued_again_moves_no_row_of_the_next_batch_into_its_own(ledger):
    queue(ledger, jobs(*'abcdef'))
    kept = ledger.lease('w', 3)
    keeper(ledger).keep('w', kept, drawn(*kept))
    with ledger.transaction():
        ledger.queue_again([kept[1].id])
    assert texts(ledger.lease('w', 3)) == ['b'] and texts(ledger.lease('w', 3)) == ['d', 'e', 'f']


def test_a_row_with_several_pictures_takes_their_places_in_a_batch(ledger):
    queue(ledger, [*jobs('a', num_images_per_prompt=3), *jobs('b', 'c', 'd')])
    assert texts(ledger.lease('w', 4)) == ['a', 'b'] and texts(ledger.lease('w', 4)) == ['c', 'd']


def test_many_workers_never_get_the_same_row(ledger, tmp_path):
    queue(ledger, jobs(*map(str, range(600))))
    got: list[str] = []

    def work(name: str) -> None:
        own = Ledger(tmp_path, name)
        while leased := own.lease('w', 1):
            got.extend(texts(leased))
        own.close()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, 'abcd'))      # raises what one of them raises
    assert sorted(got, key=int) == list(map(str, range(600)))


def test_a_lease_runs_out_and_what_comes_late_is_not_kept(ledger, tmp_path, monkeypatch):
    queue(ledger, jobs('a'))
    monkeypatch.setattr(ledgers, 'LEASE', -1.0)
    late = ledger.lease('w', 1)
    monkeypatch.undo()
    other = Ledger(tmp_path, 'other')
    with other.transaction():
        assert other.take_back() == 1
    assert other.lease('w', 1) == late
    assert keeper(ledger).keep('w', late, drawn(*late))[0].what == 'lost'
    assert not list(tmp_path.glob('*.png')) and ledger.counts()['leased'] == 1
    other.close()


def test_a_heartbeat_keeps_a_lease_for_as_long_as_the_drawing_takes(ledger, monkeypatch):
    queue(ledger, jobs('a'))
    monkeypatch.setattr(ledgers, 'LEASE', 0.5)
    ledger.lease('w', 1)
    with Heartbeat(ledger, every=0.1):
        time.sleep(1.0)
        with ledger.transaction():
            assert ledger.take_back() == 0
    time.sleep(0.6)
    with ledger.transaction():
        assert ledger.take_back() == 1


def test_what_a_command_that_is_gone_had_leased_is_queued_at_once_and_its_remains_go(ledger, tmp_path):
    here, there, gone = Presence(tmp_path), Presence(tmp_path), Presence(tmp_path)
    queue(ledger, jobs('a', 'b', 'c'))
    for presence in (here, there, gone):
        with ledger.transaction():
            presence.arrive()
        Ledger(tmp_path, presence.token).lease('w', 1)
    (gone.folder / 'half').write_bytes(b'x')
    gone._lock.release()     # as the operating system does
    assert reclaim(ledger, here) == 1 and ledger.counts() == {'queued': 1, 'leased': 2, 'done': 0, 'failed': 0}
    assert sorted(path.name for path in here.room.iterdir()) == sorted([here.token, there.token])
    there.leave()
    here.leave()
    assert not here.room.exists()


@pytest.mark.parametrize('answer, tries, states', [
    (Refused('broken', final=False), 3, ['queued', 'queued', 'failed']),
    (Refused('wrong', final=True), 3, ['failed']),
    (Refused('broken', final=False), 1, ['failed']),
    (Death('signal 9'), 3, ['queued', 'queued', 'failed']),
    (Death('signal 9', blameless=True), 1, ['queued', 'queued', 'queued']),
])
def test_a_row_fails_after_its_tries_with_its_reason(answer, tries, states, ledger):
    queue(ledger, jobs('a'))
    for state in states:
        leased = ledger.lease('w', 1)
        keeper(ledger, tries).keep('w', leased, answer if isinstance(answer, Death) else [answer])
        assert ledger.counts()[state] == 1
    if state == 'failed':
        [entry] = ledger.entries('failed')
        assert entry.reason == answer.reason and entry.tries == len(states)
        with ledger.transaction():
            assert ledger.retry_failed() == 1
        assert ledger.lease('w', 1)[0].tries == 0


def test_a_row_that_kills_its_worker_takes_none_of_its_neighbours_along(ledger):
    queue(ledger, jobs('a', 'b', 'poison', 'd'))
    seen = []
    while leased := ledger.lease('w', 4):
        seen.append(texts(leased))
        keeper(ledger, 3).keep('w', leased, Death('signal 11') if 'poison' in texts(leased) else drawn(*leased))
    assert seen == [['a', 'b', 'poison', 'd']] * 2 + [['a'], ['b'], ['poison'], ['d']]
    assert [entry.request['text'] for entry in ledger.entries('failed')] == ['poison']
    assert [entry.reason for entry in ledger.entries('done')] == [None] * 3


def test_a_poisoned_row_is_tried_alone_even_where_one_try_is_allowed(ledger):
    queue(ledger, jobs('a', 'poison'))
    while leased := ledger.lease('w', 2):
        keeper(ledger, 1).keep('w', leased, Death('signal 11') if 'poison' in texts(leased) else drawn(*leased))
    assert ledger.counts() == {'queued': 0, 'leased': 0, 'done': 1, 'failed': 1}


def test_a_row_that_can_not_be_a_request_is_recorded_and_not_tried_again(ledger):
    queue(ledger, [*jobs('a'), *jobs('b', width=100)])
    [entry] = ledger.entries('failed')
    assert 'nearest: 96' in entry.reason and entry.request == {'text': 'b', 'width': 100}
    assert ledger.retry_failed() == 0


def test_files_are_named_by_prompt_and_id_and_numbered_where_a_row_has_several(ledger, tmp_path):
    queue(ledger, [*jobs('A fox, sitting!'), *jobs('一只猫' * 30, num_images_per_prompt=2), *jobs('')])
    leased = ledger.lease('w', 9)
    answers = [Drawn([b'x'] * n, [{'request': job.request}] * n, 0.1) for job, n in zip(leased, (1, 2, 1))]
    keeper(ledger).keep('w', leased, answers)
    one, two, three = (job.id for job in leased)
    cats = ('一只猫' * 30)[:40]
    assert sorted(path.name for path in tmp_path.glob('*.png')) == sorted([
        f'a-fox-sitting-{one}.png', f'{cats}-{two}-1.png', f'{cats}-{two}-2.png', f'{three}.png'])
    assert not list((tmp_path / 'aside').iterdir())


def test_a_file_begins_with_its_own_prompt_and_the_manifest_has_it(ledger, tmp_path):
    queue(ledger, jobs(['a cat', 'a dog']))
    [job] = ledger.lease('w', 9)
    recipes = [{'request': {'text': text, 'seed': seed}} for seed, text in enumerate(job.request['text'])]
    keeper(ledger).keep('w', [job], [Drawn([b'x', b'y'], recipes, 0.1)])
    lines = [json.loads(line) for line in write_manifest(ledger, tmp_path, tmp_path).read_text('utf-8').splitlines()]
    assert [(line['file'], line['text'], line['seed']) for line in lines] == [
        (f'a-cat-{job.id}-1.png', 'a cat', 0), (f'a-dog-{job.id}-2.png', 'a dog', 1)]


def test_a_done_row_whose_file_is_gone_is_found(ledger, tmp_path):
    queue(ledger, jobs('a', 'b'))
    leased = ledger.lease('w', 2)
    keeper(ledger).keep('w', leased, drawn(*leased))
    assert list(missing(ledger, tmp_path)) == []
    path = next(tmp_path.glob('a-*.png'))
    path.unlink()
    assert list(missing(ledger, tmp_path)) == [(leased[0].id, path.name)]


def test_a_picture_that_can_not_be_written_is_said_and_nothing_is_recorded(ledger, tmp_path):
    queue(ledger, jobs('a', 'b'))
    leased = ledger.lease('w', 2)
    (tmp_path / f'b-{leased[1].id}.png').mkdir()      # in the way of the second
    with pytest.raises(OutputError, match='give the same command again'):
        keeper(ledger).keep('w', leased, drawn(*leased))
    assert ledger.counts()['done'] == 0 and not list((tmp_path / 'aside').iterdir())


@pytest.mark.parametrize('content, words', [(b'nonsense' * 1000, 'could not be used'), (None, 'another version')])
def test_a_ledger_that_is_none_or_of_another_version_is_said(content, words, tmp_path):
    path = tmp_path / 'ledger.sqlite'
    if content:
        path.write_bytes(content)
    else:
        with sqlite3.connect(path) as db:
            db.execute('PRAGMA user_version = 99')
    with pytest.raises((OutputError, InvalidRequest), match=words):
        Ledger(tmp_path)


def test_many_rows_take_no_more_memory_than_few_on_their_way_through(tmp_path):
    def peak(count: int) -> int:
        folder = Path(tmp_path, str(count))
        ledger = Ledger(folder, 'me')
        tracemalloc.start()
        queue(ledger, (job_of({'text': f'a cat {i}', 'client': 'x' * 200}, 'mini') for i in range(count)))
        assert sum(1 for _ in ledger.entries('queued')) == count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        ledger.close()
        return most
    assert peak(5000) < peak(1000) + 300_000
