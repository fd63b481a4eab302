"""What `compare` holds side by side: a backend with settings, drawn through load_pipeline like everything else."""
from __future__ import annotations

import gc
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelscope_cartoon import metadata
from modelscope_cartoon.errors import ModelError
from modelscope_cartoon.files import write_file


@dataclass
class Candidate:
    """backend and settings (fields of a request), and one entry a picture of what came of them.

    evaluations: of the UNet for one picture; a call with guidance counts twice. latents: the last ones, float32.
    """
    backend: str
    settings: dict[str, Any]
    seconds: list[float] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    latents: list[Any] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)
    recipes: list[dict[str, Any]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    fault: str | None = None

    @property
    def name(self) -> str:
        own = ' '.join(f'{key}={value}' for key, value in self.settings.items() if key != 'preset')
        return f'{self.backend} {self.settings.get("preset", "")}{own}'


def draw_all(candidates: list[Candidate], requests: list[dict[str, Any]], folder: Path, model: str, **options: Any,
             ) -> None:
    """`candidates` of one backend draw `requests` on one loaded model. options: load_pipeline's.

    A fault is its candidate's own business: the others are drawn all the same.
    """
    pipe = None
    for candidate in candidates:
        try:
            pipe = pipe or _load(model, requests[0], **options)
            for request in requests:
                _draw(pipe, candidate, request)
                candidate.files.append(_save(candidate, folder))
        except Exception as error:
            candidate.fault = ' '.join(f'{type(error).__name__}: {error}'.split())
    del pipe
    free()


def _save(candidate: Candidate, folder: Path) -> str:
    from PIL import Image

    name = re.sub(r'[^\w.=-]+', '-', candidate.name)
    data = metadata.write(Image.fromarray(candidate.images[-1]), 'PNG', candidate.recipes[-1])
    return str(write_file(folder / f'{name}-{len(candidate.images)}.png', data))


def _load(model: str, request: dict[str, Any], **options: Any) -> Any:
    """Two short pictures first, with guidance and without, so that no first call's work counts as a candidate's."""
    from modelscope_cartoon import load_pipeline

    pipe = load_pipeline(model, **options)
    if pipe.model.backend != options['backend']:
        raise ModelError(f'backend {options["backend"]!r} can\'t draw this model.')
    for guidance in (7.5, 1.0):
        pipe({**request, 'num_inference_steps': 1, 'guidance_scale': guidance})
    return pipe


def free() -> None:
    import torch
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _draw(pipe: Any, candidate: Candidate, request: dict[str, Any]) -> None:
    seen: dict[str, Any] = {'evaluations': 0}

    def look(diffusers_pipe: Any, call: int, timestep: Any, tensors: dict[str, Any]) -> None:
        seen['evaluations'] += 2 if diffusers_pipe.do_classifier_free_guidance else 1
        seen['latents'] = tensors['latents']
    started = time.perf_counter()
    output = pipe({**request, **candidate.settings, 'callback_on_step_end': look, 'output_type': 'rgb'})
    candidate.seconds.append(round(time.perf_counter() - started, 3))
    candidate.evaluations.append(seen['evaluations'])
    candidate.latents.append(seen['latents'].float().cpu().numpy())
    candidate.images.append(output['output_imgs'][0])
    candidate.recipes.append(output['recipes'][0])
