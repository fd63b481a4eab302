"""A batch on a real Ray cluster of two nodes on this machine: whatever of it is killed, nothing is lost."""
from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray_artists
from PIL import Image
from ray_artists import Stub, lines

pytest.importorskip('ray', reason="needs pip install 'modelscope-cartoon[ray]'")
pytestmark = pytest.mark.skipif(os.name == 'nt', reason='Ray has no clusters on Windows')

from modelscope_cartoon import batching  # noqa: E402
from modelscope_cartoon.batch.actors import Actors  # noqa: E402
from modelscope_cartoon.batch.cluster import check, places  # noqa: E402
from modelscope_cartoon.batch.driver import draw_all  # noqa: E402
from modelscope_cartoon.batch.jobs import job_of  # noqa: E402
from modelscope_cartoon.batch.keeping import Keeper  # noqa: E402
from modelscope_cartoon.batch.ledger import Ledger  # noqa: E402
from modelscope_cartoon.batch.painter import Painter  # noqa: E402
from modelscope_cartoon.batch.presence import Presence  # noqa: E402
from modelscope_cartoon.batch.queueing import queue  # noqa: E402
from modelscope_cartoon.cli import main  # noqa: E402
from modelscope_cartoon.errors import InvalidRequest, ModelError  # noqa: E402
from modelscope_cartoon.log import logger  # noqa: E402

TESTS = Path(__file__).parent
QUIET = {'RAY_USAGE_STATS_ENABLED': '0', 'RAY_AUTH_MODE': 'disabled', 'RAY_memory_monitor_refresh_ms': '0',
         'PYTHONPATH': os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get('PYTHONPATH', '')]),
         'HF_HUB_OFFLINE': '1'}
NODE = {'num_cpus': 1, 'object_store_memory': 100 * 2**20, 'include_dashboard': False}
# a dead node is noticed after 2 seconds instead of 10
SOON = {'health_check_initial_delay_ms': 1000, 'health_check_period_ms': 500, 'health_check_failure_threshold': 4}


@pytest.fixture(scope='module')
def cluster():
    from ray.cluster_utils import Cluster
    folder = tempfile.mkdtemp(prefix='ray')     # pytest's own are too long for the names of sockets
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        patch.setenv('RAY_TMPDIR', folder)     # where Cluster writes its address, into a folder that it doesn't make
        home = Path(folder, 'ray')
        home.mkdir()
        cluster = Cluster(True, head_node_args={**NODE, '_system_config': SOON, 'temp_dir': str(home)})
        yield cluster
        cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def nodes(cluster):
    """Two that are alive: the head, and one that may be killed."""
    while len(cluster.list_all_nodes()) < 2:
        cluster.add_node(**NODE)
    [worker] = cluster.worker_nodes
    yield cluster.head_node, worker
    if worker.dead_processes():
        cluster.remove_node(worker)


@pytest.fixture
def log(tmp_path):
    return tmp_path / 'log.txt'


@pytest.fixture
def said(monkeypatch):
    """What the user is told."""
    words, handler = [], logging.Handler()
    handler.emit = lambda record: words.append(record.getMessage())
    monkeypatch.setattr(logger, 'handlers', [handler])
    return words


@contextlib.contextmanager
def drawn(artist: Stub, address: str, folder: Path, texts: list[str], report: Callable = lambda events: None,
          ) -> Iterator[Ledger]:
    """The ledger when everything is drawn."""
    ledger, presence = Ledger(folder, 'me'), Presence(folder)
    presence.arrive()
    queue(ledger, [job_of({'text': text}, 'mini') for text in texts])
    keeper, crew = Keeper(ledger, folder, presence.folder, '.png', 2), Actors(artist, address)
    end = time.monotonic() + 90

    def report_in_time(events: object) -> None:
        assert time.monotonic() < end, f'it does not end: {ledger.counts()}'
        report(events)
    try:
        draw_all(ledger, keeper, crew, presence, 2, report_in_time)
        yield ledger
    finally:
        crew.close()
        presence.leave()
        ledger.close()


def kill(node) -> None:
    """SIGKILL, as a machine whose power is cut: nobody has a last word."""
    raylet = psutil.Process(node.all_processes['raylet'][0].process.pid)
    for process in [raylet, *raylet.children(recursive=True)]:
        process.send_signal(signal.SIGKILL)


def write_jobs(path: Path, count: int, **more) -> Path:
    path.write_text(''.join(json.dumps({'text': f'cat-{i}', **more}) + '\n' for i in range(count)))
    return path


def begun(log: Path) -> Counter[str]:
    return Counter(text for _, verb, text in lines(log) if verb == 'begins')


def in_flight(log: Path, node: str) -> list[str]:
    times = Counter()
    for where, verb, text in lines(log):
        times[text] += (where == node) * (1 if verb == 'begins' else -1)
    return [text for text, count in times.items() if count > 0]


def test_two_nodes_draw_every_row_once_with_the_pixels_of_a_local_run(cluster, nodes, tiny_folder, tmp_path, capfd):
    jobs = write_jobs(tmp_path / 'jobs.jsonl', 7, num_inference_steps=2, height=64, width=64)
    before, on_term = dict(os.environ), signal.getsignal(signal.SIGTERM)
    common = ['batch', str(jobs), '--model', str(tiny_folder), '--batch-size', '2', '--json', '-o']
    assert main([*common, str(tmp_path / 'ray'), '--ray', cluster.address]) == 0
    assert json.loads(capfd.readouterr().out)['rows']['done'] == 7     # nothing of Ray's on standard output
    assert dict(os.environ) == before and signal.getsignal(signal.SIGTERM) == on_term
    assert main([*common, str(tmp_path / 'here'), '--device', 'cpu']) == 0
    there, here = ({path.name: np.asarray(Image.open(path)) for path in (tmp_path / name).glob('*.png')}
                   for name in ('ray', 'here'))
    assert len(here) == 7 and there.keys() == here.keys()
    assert all((there[name] == here[name]).all() for name in here)
    recipe = json.loads((tmp_path / 'ray' / 'manifest.jsonl').read_text().splitlines()[0])['recipe']
    assert recipe['machine']['device'] == 'cpu'


def test_a_killed_node_loses_nothing_and_its_rows_are_not_blamed(cluster, nodes, log, tmp_path, said, capfd):
    head, doomed = nodes
    torn: list[str] = []

    def cut_the_power(events: object) -> None:
        found = in_flight(log, doomed.node_id)
        if not torn and found and len(lines(log)) > 12:
            torn.extend(found)
            kill(doomed)
    texts = [f'cat-{i}' for i in range(30)]
    with drawn(Stub(log, together=2), cluster.address, tmp_path, texts, cut_the_power) as ledger:
        entries = list(ledger.entries('done'))
    assert torn and len(entries) == 30
    assert all(entry.tries == 0 and (tmp_path / entry.pictures[0]['file']).is_file() for entry in entries)
    again = {text for text, times in begun(log).items() if times > 1}
    assert again <= set(torn), 'only what was in the killed hands is drawn twice'
    assert sum('left the Ray cluster' in words for words in said) == 1
    assert capfd.readouterr().out == '', "what Ray tells is not the result"


def test_a_node_that_joins_in_the_middle_draws_too(cluster, log, tmp_path):
    for worker in list(cluster.worker_nodes):
        cluster.remove_node(worker)

    def join(events: object) -> None:
        if not cluster.worker_nodes and lines(log):
            cluster.add_node(**NODE)
    with drawn(Stub(log, together=2), cluster.address, tmp_path, list('abcdef'), join) as ledger:
        assert ledger.counts()['done'] == 6     # which it can't be before another node has begun


def test_a_row_that_kills_its_actor_fails_alone_after_its_tries(cluster, nodes, log, tmp_path, capfd):
    texts = ['a', 'die', 'c', 'd', 'e', 'f']
    with drawn(Stub(log), cluster.address, tmp_path, texts) as ledger:
        [entry] = ledger.entries('failed')
        assert ledger.counts()['done'] == 5
    assert entry.request['text'] == 'die' and entry.tries == begun(log)['die'] == 3
    assert capfd.readouterr().out == ''
    assert 'the actor that drew it' in entry.reason and 'worker process has died' in entry.reason


def test_a_node_that_can_not_load_is_left_out_and_said_once(cluster, nodes, log, tmp_path, said):
    head, lame = nodes
    with drawn(Stub(log, lame=[lame.node_id], together=2), cluster.address, tmp_path, list('abcdefgh')) as ledger:
        assert ledger.counts()['done'] == 8
    assert {node for node, verb, _ in lines(log) if verb == 'begins'} == {head.node_id}
    assert sum('is left out: the weights are broken.' in words for words in said) == 1


def test_where_no_node_can_load_the_batch_ends_with_the_reason_and_fails_no_row(cluster, nodes, log, tmp_path):
    lame = [node.node_id for node in nodes]
    with pytest.raises(ModelError, match='no machine of the Ray cluster can draw: .*the weights are broken'), \
            drawn(Stub(log, lame=lame), cluster.address, tmp_path, list('abcd')):
        pass
    ledger = Ledger(tmp_path)
    assert ledger.counts()['failed'] == 0
    ledger.close()


def test_a_killed_driver_goes_on_where_it_was(cluster, nodes, log, tmp_path, monkeypatch):
    monkeypatch.setattr(batching, 'Artist', None)     # is set by the command
    jobs, output = write_jobs(tmp_path / 'jobs.jsonl', 24), tmp_path / 'out'
    command = [sys.executable, str(TESTS / 'ray_artists.py'), str(jobs), str(output), cluster.address, str(log)]
    driver = subprocess.Popen(command)
    end = time.monotonic() + 60
    while sum(verb == 'ends' for _, verb, _ in lines(log)) < 6 and time.monotonic() < end:
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    ledger = Ledger(output)
    counts = ledger.counts()
    ledger.close()
    assert counts['done'] >= 2 and counts['queued'] > 0
    assert ray_artists.command(*command[2:]) == 0
    ledger = Ledger(output)
    files = {entry.pictures[0]['file'] for entry in ledger.entries('done')}
    ledger.close()
    assert len(files) == 24 and files == {path.name for path in output.glob('*.png')}
    twice = [text for text, times in begun(log).items() if times > 1]
    assert len(begun(log)) == 24 and len(twice) <= 8, 'at most what each of two actors drew, and what was being kept'


def node(name: str, alive: bool = True, **resources: float) -> dict:
    return {'NodeID': name, 'NodeManagerAddress': f'{name}.local', 'Alive': alive, 'Resources': resources}


@pytest.mark.parametrize('device, workers, expected', [
    (None, None, ['big 1 0', 'big 1 0']), ('gpu', None, ['big 1 0', 'big 1 0']), (None, 1, ['big 1 0']),
    ('cpu', None, ['big 0 8', 'small 0 4']), ('cpu', 3, ['big 0 2'] * 3 + ['small 0 1'] * 3)])
def test_an_actor_takes_a_gpu_and_without_one_a_share_of_the_cpus(device, workers, expected):
    there = [node('big', CPU=8, GPU=2), node('small', CPU=4), node('dead', False, CPU=64, GPU=8), node('store')]
    found = places(there, device, workers)
    assert [f'{place.node} {place.gpus} {place.cpus}' for place in found] == expected
    assert len({place.name for place in found}) == len(found)


def test_without_a_gpu_in_the_cluster_each_machine_draws_on_its_cpus():
    assert [(place.node, place.cpus) for place in places([node('a', CPU=4), node('b', CPU=2)], None, None)] == [
        ('a', 4), ('b', 2)]
    assert places([node('a', CPU=4)], 'gpu', None) == []


def test_a_folder_that_a_machine_lacks_and_another_version_are_said(log, tmp_path):
    from modelscope_cartoon import __version__
    painter = Painter(Stub(log), str(tmp_path))
    assert painter.arrive(__version__, [str(tmp_path)]) is None
    assert f'no folder {log}' in painter.arrive(__version__, [str(tmp_path), str(log)])
    assert 'the driver 9.9' in painter.arrive('9.9', [])


@pytest.mark.parametrize('options, words', [
    (['--ray', 'ray://here:10001'], 'on a machine of the cluster'), (['--ray', '--device', 'cuda:1'], 'gpu, cpu'),
    (['--ray', 'nowhere'], 'no cluster was joined')])
def test_what_ray_can_not_do_is_one_sentence(options, words, tmp_path, capsys):
    jobs = write_jobs(tmp_path / 'jobs.jsonl', 1)
    assert main(['batch', str(jobs), '-o', str(tmp_path / 'out'), *options]) == 2
    assert words in capsys.readouterr().err


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(InvalidRequest, match=r"pip install 'modelscope-cartoon\[ray\]'"):
        check('auto', None)
