"""A Ray cluster: how this process joins it, or starts one here, and where in it there is room for an actor."""
from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from modelscope_cartoon.errors import InvalidRequest


class Place(NamedTuple):
    """Room for one actor. node: Ray's id of the machine. gpus, cpus: what the actor takes of it."""
    node: str
    host: str
    number: int
    gpus: int
    cpus: int

    @property
    def name(self) -> str:
        return f'{self.node}/{self.number}'


def places(nodes: Sequence[Mapping[str, Any]], device: str | None, workers: int | None) -> list[Place]:
    """One a GPU; in a cluster without one, or with device 'cpu', one a machine, which takes all of its CPUs.

    nodes: as ray.nodes() has them. workers: so many on each machine, as far as it has GPUs or CPUs for them.
    """
    alive = [node for node in nodes if node['Alive']]
    on_gpus = device == 'gpu' or (device is None and any(_count(node, 'GPU') for node in alive))
    found = []
    for node in alive:
        there = _count(node, 'GPU' if on_gpus else 'CPU')
        actors = min(workers or (there if on_gpus else 1), there)
        share = there // actors if actors else 0
        found += [Place(node['NodeID'], node['NodeManagerAddress'], number, *((1, 0) if on_gpus else (0, share)))
                  for number in range(actors)]
    return found


def _count(node: Mapping[str, Any], resource: str) -> int:
    return int(node['Resources'].get(resource, 0))


def check(address: str, device: str | None) -> None:
    """InvalidRequest where Ray isn't installed, or what is asked for isn't to be had with it."""
    _import_ray()
    if '://' in address:
        raise InvalidRequest(f'--ray {address} is an address of Ray\'s client, through which pictures would be slow; '
                             'give the command on a machine of the cluster, with --ray auto.')
    if device not in (None, 'gpu', 'cpu'):
        raise InvalidRequest(f'--device {device} names one of several GPUs, which Ray deals out itself; '
                             'with --ray accepted: gpu, cpu.')


def _import_ray() -> Any:
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')     # else a cluster started here would tell its makers
    try:
        import ray
    except ImportError as error:
        raise InvalidRequest(f"--ray needs Ray ({error}): pip install 'modelscope-cartoon[ray]'.") from error
    return ray


@contextlib.contextmanager
def joined(address: str) -> Iterator[Any]:
    """The module ray, connected. '': the cluster that runs on this machine, or else one that is started here.

    What was started is ended, and what Ray changed in this process is undone.
    """
    before, on_term = dict(os.environ), signal.getsignal(signal.SIGTERM)
    ray = _import_ray()
    if ray.is_initialized():     # by whoever called us, whose business its end is
        yield ray
        return
    with contextlib.redirect_stdout(sys.stderr):     # Ray tells of dead workers on stdout, which is for results
        try:
            _init(ray, address)
            yield ray
        finally:
            ray.shutdown()     # tells what it has kept to itself
            _undo(before, on_term)


def _init(ray: Any, address: str) -> None:
    try:
        ray.init(address or None, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise InvalidRequest(f'--ray {address or "alone"}: no cluster was joined ({" ".join(str(error).split())}); '
                             '`ray start --head` starts one, --ray local one for this command alone.') from error


def _undo(before: Mapping[str, str], on_term: Any) -> None:
    for name in [name for name in os.environ if name.startswith('RAY_') or name == 'PYTHONBREAKPOINT']:
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]
    if on_term is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_term)
