"""Who draws on a Ray cluster: actors, each with an artist of its own. Ledger and files stay with the driver, which runs
on one of the machines: an actor takes requests and gives encoded pictures.

Machines may come and go. An actor that ends is started again; rows that were with a machine that is gone are drawn by
another, and it is not held against them.
"""
from __future__ import annotations

import contextlib
import copy
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelscope_cartoon import __version__
from modelscope_cartoon.batch.artist import Artist, Outcome
from modelscope_cartoon.batch.cluster import Place, joined, places
from modelscope_cartoon.batch.keeping import Death
from modelscope_cartoon.batch.painter import Painter
from modelscope_cartoon.errors import CartoonError, ModelError
from modelscope_cartoon.log import logger

_LOOK = 2.0              # seconds between looks at which machines there are
_PATIENCE = 30.0         # seconds without anybody who draws, before it is said
_DEATHS = 3              # in a row and before anything is drawn: it is no accident
_STARTING, _IDLE, _LOADING, _DRAWING = 'starting', 'idle', 'loading', 'drawing'


class _Hand:
    """An actor, what it is at, and the answers that are still to come from it."""

    def __init__(self, actor: Any, place: Place, awaited: Any):
        self.actor, self.place, self.stage, self.awaited = actor, place, _STARTING, [awaited]
        self.cut_off = False     # it couldn't be reached, and was asked whether it is there


class Actors:
    """address: of the cluster; '' is the one that runs on this machine, or else one started here. workers: on each
    machine; None is one a GPU, or one a machine in a cluster without GPUs."""

    def __init__(self, artist: Artist, address: str = '', workers: int | None = None):
        self._artist, self._folders = _with_whole_paths(artist)
        self._workers = workers
        self._stay = contextlib.ExitStack()
        self._ray = self._stay.enter_context(joined(address))
        self._hands: dict[str, _Hand] = {}
        self._left_out: dict[str, str] = {}      # node -> which it is, and why it can't draw
        self._deaths: Counter[str] = Counter()
        self._gone: set[str] = set()
        self._looked, self._alone_since = -_LOOK, time.monotonic()

    def idle(self) -> list[str]:
        """Whoever is ready; waits a moment where nobody is, and nobody draws. ModelError where nobody ever can."""
        self._look_around()
        if all(hand.stage == _STARTING for hand in self._hands.values()):
            self.answers(1.0)
            self._say_that_nobody_draws()
        return [name for name, hand in self._hands.items() if hand.stage == _IDLE]

    def send(self, worker: str, requests: list[dict[str, Any]]) -> None:
        hand = self._hands[worker]
        hand.stage = _LOADING
        hand.awaited = [hand.actor.load.remote(requests[0]), hand.actor.draw.remote(requests)]

    def answers(self, seconds: float) -> list[tuple[str, Sequence[Outcome] | Death]]:
        """CartoonError where a request is refused that no machine would take."""
        names = {hand.awaited[0]: name for name, hand in self._hands.items() if hand.awaited}
        if not names:
            time.sleep(seconds)
            return []
        self._ray.wait(list(names), num_returns=1, timeout=seconds)
        ready, _ = self._ray.wait(list(names), num_returns=len(names), timeout=0)
        found = [(names[reference], self._heard(names[reference])) for reference in ready]
        return [(name, answer) for name, answer in found if answer is not None]

    def _heard(self, name: str) -> Sequence[Outcome] | Death | None:
        hand, errors = self._hands[name], self._ray.exceptions
        try:
            answer = self._ray.get(hand.awaited.pop(0))
        except errors.ActorUnavailableError:     # is it gone, or cut off? Ray will know in a while
            hand.cut_off, hand.awaited = True, [self._ask(hand.actor)]
            return None
        except errors.RayError as error:
            return self._lost(hand, error)
        if hand.stage == _STARTING:
            return self._started(hand, answer)
        if hand.cut_off:
            hand.stage, hand.cut_off = _IDLE, False
            return Death(f'{hand.place.host} was cut off while it drew', blameless=True)
        return self._loaded(hand, answer) if hand.stage == _LOADING else self._drawn(hand, answer)

    def _started(self, hand: _Hand, fault: str | None) -> None:
        hand.stage, hand.cut_off = _IDLE, False
        if fault:
            self._leave_out(hand, fault)

    def _loaded(self, hand: _Hand, error: CartoonError | None) -> Death | None:
        hand.stage = _DRAWING
        if error is None:
            return None
        if error.exit_code == 2:     # bad input is bad on every machine
            raise error
        self._leave_out(hand, str(error))
        return Death(str(error), blameless=True)

    def _drawn(self, hand: _Hand, answer: tuple[list[Outcome], list[str]]) -> list[Outcome]:
        hand.stage, self._alone_since = _IDLE, time.monotonic()
        self._deaths[hand.place.node] = 0
        outcomes, notes = answer
        for note in notes:
            logger.warning('%s: %s', hand.place.host, note)
        return outcomes

    def _lost(self, hand: _Hand, error: Any) -> Death | None:
        """The actor has ended, or must. Only a row that it was drawing, on a machine that is still there, is blamed."""
        place, reason = hand.place, _why(error)
        self._dismiss(hand)
        self._looked = -_LOOK     # another is started at once
        if getattr(error, 'preempted', False) or not self._is_there(place.node):
            self._say_gone(place)
            death = Death(f'{place.host}, which drew it, left the cluster', blameless=True)
        elif hand.stage == _DRAWING:
            death = Death(f'the actor that drew it on {place.host} ended: {reason}')
        else:
            self._deaths[place.node] += 1
            if self._deaths[place.node] >= _DEATHS:
                self._leave_out(hand, f'{_DEATHS} actors ended there before they could draw, the last one: {reason}')
            death = Death(reason, blameless=True)
        return death if hand.stage in (_LOADING, _DRAWING) else None

    def _look_around(self) -> None:
        """An actor for each place that has none. (One whose machine is gone is found out when it is sent something.)"""
        if time.monotonic() - self._looked < _LOOK:
            return
        self._looked = time.monotonic()
        for place in places(self._ray.nodes(), self._artist.options.get('device'), self._workers):
            if place.name not in self._hands and place.node not in self._left_out:
                self._start(place)
        if self._left_out and not self._hands:
            raise ModelError(f'no machine of the Ray cluster can draw: {" ".join(self._left_out.values())}')

    def _start(self, place: Place) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        artist = copy.copy(self._artist)
        artist.options = {**artist.options, 'device': 'gpu' if place.gpus else 'cpu'}
        actor = self._ray.remote(Painter).options(
            num_gpus=place.gpus, num_cpus=place.cpus,
            scheduling_strategy=NodeAffinitySchedulingStrategy(place.node, soft=False)).remote(artist, os.getcwd())
        self._hands[place.name] = _Hand(actor, place, self._ask(actor))

    def _ask(self, actor: Any) -> Any:
        return actor.arrive.remote(__version__, self._folders)

    def _is_there(self, node: str) -> bool:
        return any(other['NodeID'] == node and other['Alive'] for other in self._ray.nodes())

    def _leave_out(self, hand: _Hand, reason: str) -> None:
        self._dismiss(hand)
        if hand.place.node not in self._left_out:
            self._left_out[hand.place.node] = f'{hand.place.host}: {reason}'
            logger.warning('%s of the Ray cluster is left out: %s', hand.place.host, reason)

    def _dismiss(self, hand: _Hand) -> None:
        if self._hands.get(hand.place.name) is hand:
            del self._hands[hand.place.name]
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(hand.actor)

    def _say_gone(self, place: Place) -> None:
        if place.node not in self._gone:
            self._gone.add(place.node)
            logger.warning('%s left the Ray cluster; the others draw what it had.', place.host)

    def _say_that_nobody_draws(self) -> None:
        if time.monotonic() - self._alone_since > _PATIENCE:
            self._alone_since = float('inf')
            wanted = 'GPU' if self._artist.options.get('device') == 'gpu' else 'CPU or GPU'
            logger.warning('waiting for Ray to start an actor, of %d asked for; is a machine with a free %s there? '
                           '`ray status` says so.', len(self._hands), wanted)

    def close(self) -> None:
        for hand in list(self._hands.values()):
            self._dismiss(hand)
        self._stay.close()


def _with_whole_paths(artist: Artist) -> tuple[Artist, list[str]]:
    """The artist with folders named from the root, and these folders, which every machine must have."""
    artist, folders = copy.copy(artist), []
    if os.path.isdir(artist.model):
        artist.model = str(Path(artist.model).resolve())
        folders.append(artist.model)
    if lora_dir := artist.options.get('lora_dir'):
        artist.options = {**artist.options, 'lora_dir': str(Path(lora_dir).resolve())}
        folders.append(artist.options['lora_dir'])
    return artist, folders


def _why(error: Exception) -> str:
    """One line of Ray's many: the last of a traceback, or what it says of a process before it begins to guess."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1].split(' Some common causes', maxsplit=1)[0][:300]
