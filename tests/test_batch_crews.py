"""Several processes draw: rows are shared out, and one that dies or hangs takes nothing along."""
from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from batch_artists import Quick

from modelscope_cartoon.batch.crews import Processes
from modelscope_cartoon.batch.driver import draw_all
from modelscope_cartoon.batch.jobs import job_of
from modelscope_cartoon.batch.keeping import Keeper
from modelscope_cartoon.batch.ledger import Ledger
from modelscope_cartoon.batch.presence import Presence
from modelscope_cartoon.batch.queueing import queue
from modelscope_cartoon.cli import main
from modelscope_cartoon.errors import ModelError

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork, so that a worker starts at once')


@pytest.fixture
def run(tmp_path):
    """run(artist, count, *texts) -> the ledger after everything"""
    ledger = Ledger(tmp_path, 'me')

    def work(artist: Quick, count: int, *texts: str, report=lambda events: None) -> Ledger:
        presence = Presence(tmp_path)
        presence.arrive()
        queue(ledger, [job_of({'text': text}, 'mini') for text in texts])
        keeper, crew = Keeper(ledger, tmp_path, presence.folder, '.png', 2), Processes(artist, count)
        crew._spawn = multiprocessing.get_context('fork')
        try:
            draw_all(ledger, keeper, crew, presence, 2, report)
        finally:
            crew.close()
            presence.leave()
        return ledger
    yield work
    ledger.close()


def drawn(folder: Path) -> dict[str, tuple[str, str]]:
    """text -> (process, device)"""
    words = [path.read_text().split() for path in folder.glob('*.png')]
    return {text: (process, device) for text, _, process, _, device in words}


def test_rows_are_shared_out_among_the_processes(run, tmp_path):
    assert run(Quick(), 2, *map(str, range(40))).counts()['done'] == 40
    assert len({process for process, _ in drawn(tmp_path).values()} - {str(os.getpid())}) == 2


def test_a_row_that_kills_its_process_fails_alone_with_the_signal_as_its_reason(run, tmp_path):
    ledger = run(Quick(), 2, 'a', 'die', 'c', 'd', 'e')
    assert sorted(drawn(tmp_path)) == ['a', 'c', 'd', 'e']
    [entry] = ledger.entries('failed')
    assert entry.request['text'] == 'die' and 'ended with signal 9 (SIGKILL)' in entry.reason


def test_a_lost_gpu_ends_its_process_and_not_the_batch(run):
    ledger = run(Quick(), 1, 'a', 'gpu', 'c')
    assert ledger.counts()['done'] == 2 and 'ended with exit code 1' in next(ledger.entries('failed')).reason


def test_a_process_that_is_killed_from_outside_loses_nothing_and_blames_nobody(run, tmp_path):
    killed = []

    def kill_one(events: list) -> None:
        children = psutil.Process().children()
        if events and len(killed) < 2 and children:
            killed.append(children[-1].pid)
            os.kill(killed[-1], signal.SIGKILL)
    ledger = run(Quick(), 2, *map(str, range(60)), report=kill_one)
    assert len(killed) == 2 and ledger.counts()['done'] == len(drawn(tmp_path)) == 60


def test_a_model_that_can_not_be_loaded_is_said_once_and_the_rows_stay_queued(run, tmp_path):
    with pytest.raises(ModelError, match='the model is broken'):
        run(Quick('error'), 2, 'a', 'b', 'c')
    assert not drawn(tmp_path)


def test_workers_that_die_of_loading_end_the_batch_and_fail_no_row(run, tmp_path):
    with pytest.raises(ModelError, match='3 workers ended while they loaded the model, the last with signal 9'):
        run(Quick('death'), 2, *'abcdefgh')
    ledger = Ledger(tmp_path)
    assert ledger.counts()['failed'] == 0
    ledger.close()


def test_gpus_are_dealt_out_unless_a_device_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setattr('torch.cuda.device_count', lambda: 2)
    run(Quick(), 3, *map(str, range(60)))
    devices = dict(drawn(tmp_path).values())
    assert sorted(devices.values()) == ['cuda:0', 'cuda:0', 'cuda:1']


def test_ctrl_c_ends_the_workers_at_once(run):
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
    others = {child.pid for child in psutil.Process().children()}
    with pytest.raises(KeyboardInterrupt):
        run(Quick(), 2, 'sleep', 'b', 'sleep', 'd')
    assert {child.pid for child in psutil.Process().children()} == others


def test_a_driver_that_is_killed_takes_its_workers_along(tmp_path):
    def drive() -> None:
        crew = Processes(Quick(), 2)
        crew._spawn = multiprocessing.get_context('fork')
        for worker in crew.idle():
            crew.send(worker, [{'text': 'sleep'}])
        crew.answers(5)
        crew.answers(5)
        (tmp_path / 'pids').write_text(' '.join(str(process.pid) for process, _ in crew._running.values()))
        time.sleep(600)
    driver = multiprocessing.get_context('fork').Process(target=drive)
    driver.start()
    end = time.monotonic() + 60
    while not (tmp_path / 'pids').exists() and time.monotonic() < end:
        time.sleep(0.01)
    workers = [psutil.Process(int(pid)) for pid in (tmp_path / 'pids').read_text().split()]
    driver.kill()
    assert len(workers) == 2 and psutil.wait_procs(workers, timeout=10)[1] == []


def test_a_real_process_that_is_killed_is_replaced_and_draws_what_this_one_draws(tiny_folder, tmp_path, monkeypatch):
    jobs, killed, others = tmp_path / 'jobs.jsonl', [], {child.pid for child in psutil.Process().children()}
    jobs.write_text(''.join(json.dumps({'text': f'a cat {i}', 'num_inference_steps': 4}) + '\n' for i in range(24)))
    monkeypatch.setenv('SOURCE_DATE_EPOCH', '0')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')      # as here: the number of threads shows in the last bits
    command = ['batch', str(jobs), '--device', 'cpu', '--model', str(tiny_folder), '-o']

    def kill_one() -> None:
        end = time.monotonic() + 200
        while len(list((tmp_path / 'other').glob('*.png'))) < 4 and time.monotonic() < end:
            time.sleep(0.02)
        [worker] = [child for child in psutil.Process().children() if child.pid not in others
                    and 'spawn_main' in ' '.join(child.cmdline())]
        worker.kill()
        killed.append(worker.pid)
    killer = threading.Thread(target=kill_one)
    killer.start()
    assert main([*command, str(tmp_path / 'other'), '--workers', '1']) == 0
    killer.join()
    assert main([*command, str(tmp_path / 'this')]) == 0
    other, this = ({path.name: path.read_bytes() for path in (tmp_path / name).glob('*.png')}
                   for name in ('other', 'this'))
    assert killed and len(this) == 24 and other == this
