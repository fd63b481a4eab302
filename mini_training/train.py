"""Trains the denoiser until a clock time: `python -m mini_training.train --work DIR --minutes 95`.

Each process owns one thread and half a batch; every few steps their weights are averaged over loopback (local SGD). Two
such processes keep going on a busy machine where one process with two threads stalls at every operation.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parameters_to_vector

from mini_training.denoiser import Denoiser
from mini_training.files import save_whole
from mini_training.muon import Muon
from mini_training.subjects import weight_of

EMPTY_SHARE = 0.1
# Plain fills and sharp borders are learnt last; where they are smeared, flat is taken for watercolor.
LOOK_SHARE = {'design': 1.0, 'watercolor': 1.0, 'illustration': 1.0, 'clipart': 1.5, 'flat': 2.0}
FLAT_SHARE = 0.3
EMA = 0.998
SYNC_STEPS = 8
MATRIX_RATE = 0.02  # Muon, for the UNet's matrices and convolutions
RATE, TEXT_RATE = 1.2e-3, 0.4e-3  # AdamW, for the rest of the UNet and for the text encoder
SAVE_SECONDS = 180


class Batches:
    """Cached latents with one of their captions, some captions emptied for classifier-free guidance."""

    def __init__(self, work: Path, empty: torch.Tensor, seed: int) -> None:
        self.latents = torch.from_numpy(np.load(work / 'latents.npy'))
        self.tokens = torch.from_numpy(np.load(work / 'tokens.npy'))
        self.empty = empty
        self.generator = torch.Generator().manual_seed(seed)
        rows = [json.loads(line) for line in (work / 'rows.jsonl').read_text().splitlines()]
        self.weights = torch.tensor([LOOK_SHARE[row['look']] * weight_of(row) for row in rows])

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.multinomial(self.weights, count, replacement=True, generator=self.generator)
        which = torch.randint(self.tokens.shape[1], (count,), generator=self.generator)
        tokens = self.tokens[rows, which].long()
        tokens[torch.rand(count, generator=self.generator) < EMPTY_SHARE] = self.empty
        return self.latents[rows].float(), tokens


def share_of_rate(progress: float, step: int) -> float:
    decay = max(0.0, (progress - FLAT_SHARE) / (1 - FLAT_SHARE))
    return min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * min(1.0, decay)))


class Optimizers:
    """Muon for the UNet's matrices, AdamW for everything else, with one rate schedule."""

    def __init__(self, model: Denoiser) -> None:
        matrices = {name for name, p in model.unet.named_parameters()
                    if p.ndim > 1 and not name.startswith(('conv_in', 'conv_out', 'time_embedding'))}
        named = dict(model.unet.named_parameters())
        rest = [p for name, p in named.items() if name not in matrices]
        groups = [{'params': rest}, {'params': list(model.text_encoder.parameters()), 'lr': TEXT_RATE}]
        self.all = (Muon([named[name] for name in matrices], MATRIX_RATE),
                    torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True))
        self.peaks = [[group['lr'] for group in one.param_groups] for one in self.all]

    def set_rate(self, share: float) -> None:
        for one, peaks in zip(self.all, self.peaks, strict=True):
            for group, peak in zip(one.param_groups, peaks, strict=True):
                group['lr'] = share * peak

    def step(self) -> None:
        for one in self.all:
            one.step()
            one.zero_grad()

    def state_dict(self) -> list[dict[str, Any]]:
        return [one.state_dict() for one in self.all]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for one, state in zip(self.all, states, strict=True):
            one.load_state_dict(state)


@contextlib.contextmanager
def fast_arithmetic() -> Iterator[None]:
    """bf16 where the processor computes in it; there torch's own attention is slow backwards, plain products aren't."""
    can = torch.cpu.get_capabilities()
    if not (can.get('avx512_bf16') or can.get('amx_bf16')):
        yield
        return
    with torch.autocast('cpu', torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


@torch.no_grad()
def average_weights(parameters: list[torch.nn.Parameter]) -> None:
    """One message for all weights: many small ones would wait for the network stack."""
    flat = parameters_to_vector(parameters)
    dist.all_reduce(flat)
    pieces = flat.div_(dist.get_world_size()).split([p.numel() for p in parameters])
    for parameter, piece in zip(parameters, pieces, strict=True):
        parameter.copy_(piece.view_as(parameter))


def shared_progress(start: float, until: float) -> float:
    """Rank 0's clock decides, so that all processes stop at the same step."""
    now = torch.tensor([(time.time() - start) / (until - start)], dtype=torch.float64)
    dist.broadcast(now, 0)
    return float(now)


def reads_text(key: str) -> bool:
    return key.startswith('text_encoder.') or '.attn2.' in key


def restore(args: argparse.Namespace, model: Denoiser, optimizer: Optimizers) -> dict[str, Any]:
    """The state of an interrupted run, whose end is kept, or a fresh one."""
    path, now = args.output.with_suffix('.state'), time.time()
    if not path.exists():
        if args.init:
            weights = torch.load(args.init, weights_only=True)
            model.load_state_dict({k: v for k, v in weights.items() if not reads_text(k)}, strict=False)
        if args.again:
            model.load_state_dict(torch.load(args.again, weights_only=True))
        return {'step': 0, 'start': now, 'until': now + 60 * args.minutes, 'ema': None}
    state: dict[str, Any] = torch.load(path, weights_only=True)
    model.load_state_dict(state.pop('model'))
    optimizer.load_state_dict(state.pop('optimizer'))
    return state


def run(rank: int, args: argparse.Namespace) -> None:
    os.environ |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(args.port)}
    dist.init_process_group('gloo', rank=rank, world_size=args.processes)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = Denoiser(args.work)
    parameters = list(model.parameters())
    optimizer = Optimizers(model)
    state = restore(args, model, optimizer)
    ema = [p.detach().clone() for p in parameters] if state['ema'] is None else state['ema']
    torch.manual_seed(rank + state['step'])
    eos = model.text_encoder.config.eos_token_id
    empty = torch.full((model.text_encoder.config.max_position_embeddings,), eos)
    empty[0] = model.text_encoder.config.bos_token_id
    batches = Batches(args.work, empty, time.time_ns() % 2**31 + rank)
    loop(rank, args, model, parameters, optimizer, ema, batches, state)
    dist.destroy_process_group()


def local_steps(model: Denoiser, parameters: list[torch.nn.Parameter], optimizer: Optimizers,
                batches: Batches, count: int) -> float:
    """Steps between two meetings; the mean loss."""
    total = 0.0
    for _ in range(SYNC_STEPS):
        with fast_arithmetic():
            loss = model(*batches.draw(count))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        total += loss.item()
    return total / SYNC_STEPS


def loop(rank: int, args: argparse.Namespace, model: Denoiser, parameters: list[torch.nn.Parameter],
         optimizer: Optimizers, ema: list[torch.Tensor], batches: Batches, state: dict[str, Any]) -> None:
    saved, first, began, mean = time.time(), state['step'], time.time(), 1.0
    while (progress := shared_progress(state['start'], state['until'])) < 1:
        optimizer.set_rate(args.peak * share_of_rate(progress, state['step']))
        loss = local_steps(model, parameters, optimizer, batches, args.batch // args.processes)
        average_weights(parameters)
        step = state['step'] = state['step'] + SYNC_STEPS
        decay = min(EMA, step / (step + 10)) ** SYNC_STEPS
        torch._foreach_lerp_(ema, [p.detach() for p in parameters], 1 - decay)
        mean += (loss - mean) / min(step / SYNC_STEPS, 25)
        if rank == 0 and step % (5 * SYNC_STEPS) == 0:
            speed = (step - first) * args.batch / (time.time() - began)
            print(f'step {step} {progress:.3f} loss {mean:.4f} {speed:.1f} samples/s', flush=True)
        if rank == 0 and time.time() - saved > SAVE_SECONDS:
            save(args.output, model, optimizer, parameters, ema, state)
            saved = time.time()
    if rank == 0:
        save(args.output, model, optimizer, parameters, ema, state)
        print('samples', state['step'] * args.batch)


def save(output: Path, model: Denoiser, optimizer: Optimizers, parameters: list[torch.nn.Parameter],
         ema: list[torch.Tensor], state: dict[str, Any]) -> None:
    """`output` holds the averaged weights to export, `.state` beside it what a resumed run needs."""
    averaged = {name: value for (name, _), value in zip(model.named_parameters(), ema, strict=True)}
    save_whole(model.state_dict() | averaged, output)
    whole = {**state, 'ema': ema, 'model': model.state_dict(), 'optimizer': optimizer.state_dict()}
    save_whole(whole, output.with_suffix('.state'))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work', type=Path, required=True)
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--minutes', type=float, required=True)
    parser.add_argument('--init', type=Path, help='an earlier run: its UNet is kept where it reads no text')
    parser.add_argument('--again', type=Path, help='an ended run: all its weights, under a new schedule')
    parser.add_argument('--peak', type=float, default=1.0, help='share of the highest rates, lower for --again')
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--port', type=int, default=29731)
    args = parser.parse_args()
    mp.spawn(run, (args,), nprocs=args.processes)


if __name__ == '__main__':
    main()
