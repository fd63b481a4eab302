"""The training loop: draw a batch, its loss, one optimizer step; checkpoints, samples and a stop in between.

Every random number of a step comes from (seed, step), so a run that was cut off goes on as if it had not been, and
several processes, each with its share of the batch, do what one would.
"""
from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from modelscope_cartoon.errors import InvalidRequest, NonFiniteError, Stopped
from modelscope_cartoon.training import losses
from modelscope_cartoon.training.base import Base, without_lora
from modelscope_cartoon.training.checkpoint import Checkpoint, Tensors, save_checkpoint
from modelscope_cartoon.training.draws import Batch, Draws, seeded
from modelscope_cartoon.training.material import Material
from modelscope_cartoon.training.progress import bar
from modelscope_cartoon.training.signals import StopSignal

_BETAS, _EPSILON = (0.9, 0.999), 1e-8     # diffusers examples, --adam_beta1, --adam_beta2, --adam_epsilon


class Loop:
    """about: kept in each checkpoint, to compare when a run is resumed. history: loss, loss of class pictures and
    gradient norm of each step done."""

    def __init__(self, accelerator: Accelerator, base: Base, material: Material, checkpoints: Path,
                 about: dict[str, Any]):
        self.accelerator, self.base, self.material = accelerator, base, material
        self.recipe, self.checkpoints, self.about = base.recipe, checkpoints, about
        if self.recipe.batch_size % (accelerator.num_processes * self.recipe.accumulation):
            raise InvalidRequest(f'batch_size {self.recipe.batch_size} does not divide into '
                                 f'{accelerator.num_processes} processes times {self.recipe.accumulation} pieces; '
                                 'use a multiple of it.')
        self.student = base.student()
        self.trained = {name: p for name, p in self.student.named_parameters() if p.requires_grad}
        self._adamw = torch.optim.AdamW(self._groups(), betas=_BETAS, eps=_EPSILON,
                                        weight_decay=self.recipe.weight_decay)
        self.ema = EMAModel(list(self.trained.values()), decay=self.recipe.ema) if self.recipe.ema else None
        self.model, self.optimizer = accelerator.prepare(self.student, self._adamw)
        self.draws = Draws(self.recipe, material.pictures, len(material.names) - material.pictures,
                           tuple(material.latents[0].shape[1:]), len(base.alphas))
        self.step, self.history = 0, torch.empty(0, 3)

    def _groups(self) -> list[dict[str, Any]]:
        text = [p for name, p in self.trained.items() if name.startswith('text_encoder')]
        unet = [p for name, p in self.trained.items() if not name.startswith('text_encoder')]
        rates = (self.recipe.learning_rate, self.recipe.text_encoder_learning_rate)
        return [{'params': group, 'lr': rate, 'full_rate': rate} for group, rate in zip((unet, text), rates) if group]

    def run(self, every_so_often: Callable[[int], None] = lambda step: None) -> None:
        """To the last step. every_so_often is called on the main process every sample_every steps, weights averaged
        where there is an EMA. Stopped after Ctrl-C, NonFiniteError where the loss is no number.
        """
        main, steps = self.accelerator.is_main_process, self.recipe.steps
        with StopSignal() as signal, bar(steps, 'training', self.step, silent=not main) as progress:
            if self.step == 0:
                self._sample(every_so_often)
            while self.step < steps:
                loss, stop = self._step(bool(signal))
                self.step += 1
                progress.says(f'loss {loss:.4f}')
                progress.update()
                due = self.step % self.recipe.checkpoint_every == 0
                if due or stop or self.step == steps:
                    self.save()
                if stop:
                    raise Stopped(f'stopped after step {self.step} of {steps}, which is saved; the same command with '
                                  '--resume goes on from there.')
                if (self.recipe.sample_every and self.step % self.recipe.sample_every == 0) or self.step == steps:
                    self._sample(every_so_often)

    def _sample(self, every_so_often: Callable[[int], None]) -> None:
        if self.recipe.sample_every and self.accelerator.is_main_process:
            self.model.eval()
            with self.averaged(), self.accelerator.autocast(), torch.no_grad():
                every_so_often(self.step)
        self.accelerator.wait_for_everyone()

    def _step(self, stop: bool) -> tuple[float, bool]:
        """One optimizer step; the loss of the pictures, and whether any process was told to stop."""
        accelerator, world = self.accelerator, self.accelerator.num_processes
        whole = self.draws.batch(self.step)
        share = whole.take(slice(accelerator.process_index, None, world))
        torch.manual_seed(seeded(self.recipe.seed, 'layers', self.step, accelerator.process_index).initial_seed())
        self._set_rates()
        self.model.train()
        self.optimizer.zero_grad()
        pieces = self.recipe.accumulation
        mine = torch.empty(len(share.weight), device=accelerator.device)
        for piece in range(pieces):
            rows = slice(piece, None, pieces)
            with nullcontext() if piece == pieces - 1 else accelerator.no_sync(self.model):
                errors = self.errors(share.take(rows))
                accelerator.backward((errors * share.weight[rows].to(errors.device)).sum() * world)
            mine[rows] = errors.detach()
        shared = accelerator.gather(torch.cat([mine, mine.new_tensor([float(stop)])]).view(1, -1)).cpu()
        errors = torch.empty(len(whole.weight))
        for rank, row in enumerate(shared):
            errors[rank::world] = row[:-1]
        self._check_finite(errors, whole)
        norm = accelerator.clip_grad_norm_(list(self.trained.values()), self.recipe.max_grad_norm)
        if not torch.isfinite(norm) and accelerator.scaler is None:
            raise NonFiniteError(self._nan_message('the gradient', whole))
        self.optimizer.step()
        if self.ema:
            self.ema.step(self.trained.values())
        return self._record(errors, float(norm)), bool(shared[:, -1].any())

    def errors(self, batch: Batch) -> torch.Tensor:
        """The weighted squared error of each picture of `batch`, float32 [N]."""
        base, device = self.base, self.accelerator.device
        rows = self.material.text_rows(batch.position.tolist(), batch.dropped.tolist()).to(device)
        embeddings = self.material.embeddings[rows].to(base.dtype)
        x = torch.stack([self.material.latents[p][v % len(self.material.latents[p])]
                         for p, v in zip(batch.position.tolist(), batch.variant.tolist())]).to(device)
        e = losses.offset(batch.noise, batch.shift, self.recipe.offset_noise).to(device)
        a, times = base.alphas[batch.time].to(device), batch.time.to(device)
        noisy = losses.add_noise(x, e, a).to(base.dtype)
        wanted = losses.target(base.prediction, x, e, a)
        prior = batch.position >= self.material.pictures
        if self.recipe.prior_target == 'base' and prior.any():
            prior = prior.to(device)
            with torch.no_grad(), self.accelerator.autocast(), without_lora(self.student):
                wanted[prior] = self.student.unet(noisy[prior], times[prior], embeddings[prior],
                                                  return_dict=False)[0].float()
        context = embeddings if self.student.text_encoder is None else self.material.ids[rows]
        weights = losses.snr_weights(base.prediction, a, self.recipe.snr_gamma)
        return losses.errors(self.model(noisy, times, context), wanted) * weights

    def _set_rates(self) -> None:
        factor = rate_factor(self.recipe.lr_schedule, self.step, self.recipe.warmup_steps, self.recipe.steps)
        for group in self._adamw.param_groups:
            group['lr'] = group['full_rate'] * factor

    def _check_finite(self, errors: torch.Tensor, batch: Batch) -> None:
        bad = (~torch.isfinite(errors)).nonzero().flatten()
        if len(bad):
            raise NonFiniteError(self._nan_message('the loss', batch.take(bad)))

    def _nan_message(self, what: str, batch: Batch) -> str:
        names = list(dict.fromkeys(self.material.names[p] for p in batch.position.tolist()))
        return (f'step {self.step + 1}: {what} of {", ".join(names[:5])} is not a finite number; the last checkpoint '
                'is kept. Use a lower learning_rate or precision=float32, or look at that picture; --resume goes on '
                'from the checkpoint.')

    def _record(self, errors: torch.Tensor, norm: float) -> float:
        split = self.draws.pictures_in_batch
        loss, prior = float(errors[:split].mean()), float(errors[split:].mean()) if len(errors) > split else math.nan
        self.history = torch.cat([self.history, torch.tensor([[loss, prior, norm]])])
        logged = {'loss': loss, 'gradient_norm': norm, 'learning_rate': self._adamw.param_groups[0]['lr']}
        self.accelerator.log({**logged, 'prior_loss': prior} if prior == prior else logged, step=self.step + 1)
        return loss

    @contextlib.contextmanager
    def averaged(self) -> Any:
        """With the EMA's weights in place, where there is one."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.trained.values())
        self.ema.copy_to(self.trained.values())
        try:
            yield
        finally:
            self.ema.restore(self.trained.values())

    def save(self) -> None:
        if self.accelerator.is_main_process:
            save_checkpoint(self.checkpoints, Checkpoint(self.step, self._tensors(), self.about))
        self.accelerator.wait_for_everyone()

    def _tensors(self) -> dict[str, Tensors]:
        names = list(self.trained)
        tensors: dict[str, Tensors] = {
            'trained': {name: p.detach().cpu() for name, p in self.trained.items()},
            'optimizer': {f'{name}|{key}': torch.as_tensor(value).cpu() for name, p in self.trained.items()
                          for key, value in self._adamw.state.get(p, {}).items()},
            'history': {'history': self.history}}
        if self.ema:
            tensors['ema'] = {name: p.cpu() for name, p in zip(names, self.ema.shadow_params)}
        if self.accelerator.scaler is not None:
            state = self.accelerator.scaler.state_dict()
            tensors['scaler'] = {key: torch.tensor(float(value)) for key, value in state.items()}
        return tensors

    def restore(self, checkpoint: Checkpoint) -> None:
        tensors = checkpoint.tensors
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(tensors['trained'][name])
        order = [id(p) for group in self._adamw.param_groups for p in group['params']]
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors['optimizer'].items():
            name, _, what = key.rpartition('|')
            state.setdefault(order.index(id(self.trained[name])), {})[what] = tensor
        self._adamw.load_state_dict({**self._adamw.state_dict(), 'state': state})
        if self.ema:
            self.ema.shadow_params = [tensors['ema'][n].to(p.device) for n, p in self.trained.items()]
            self.ema.optimization_step = checkpoint.step
        if self.accelerator.scaler is not None and 'scaler' in tensors:
            numbers = {key: float(value) for key, value in tensors['scaler'].items()}
            whole = {key: int(numbers[key]) for key in ('growth_interval', '_growth_tracker')}
            self.accelerator.scaler.load_state_dict({**numbers, **whole})
        self.step, self.history = checkpoint.step, tensors['history']['history']


def rate_factor(schedule: str, step: int, warmup: int, steps: int) -> float:
    """Rising over `warmup` steps, then constant, falling in a line, or as half a cosine, to zero."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return {'constant': 1.0, 'linear': 1 - done, 'cosine': (1 + math.cos(math.pi * done)) / 2}[schedule]
