"""The doctor command: versions, devices, models on this machine, what would be slow or is missing, how to get it."""
from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import sys
from typing import Any

_PACKAGES = ('modelscope-cartoon', 'modelscope', 'torch', 'diffusers', 'transformers', 'accelerate', 'safetensors',
             'opencv-python', 'Pillow', 'numpy')


def report(arguments: argparse.Namespace) -> int:
    """Prints the findings; exit code 1 where something keeps the package from drawing, or a model is damaged."""
    findings = {'python': f'{platform.python_version()} on {platform.platform()}', 'packages': packages(),
                **machine(), 'models': models(), 'advice': advice()}
    findings['backends'] = backends(findings['models']) if all(findings['packages'].values()) else {}
    here = {name: path for name, path in findings['models'].items() if path}
    damaged = {name: verdict(name, path) for name, path in here.items()} | copies() if arguments.verify else {}
    findings |= {'verified': damaged} if arguments.verify else {}
    if arguments.json:
        print(json.dumps(findings, ensure_ascii=False, indent=2))
    else:
        _print(findings)
    missing = any(version is None for version in findings['packages'].values())
    return 1 if missing or any(damaged.values()) else 0


def packages() -> dict[str, str | None]:
    def version(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None
    return {name: version(name) for name in _PACKAGES}


def machine() -> dict[str, Any]:
    import psutil
    import torch

    from modelscope_cartoon.memory import free_bytes, gib
    from modelscope_cartoon.precision import cpu_has_bf16

    gpus = [{'name': torch.cuda.get_device_name(i), 'free': gib(free_bytes(torch.device('cuda', i)))}
            for i in range(torch.cuda.device_count())]
    return {'cpu': {'threads': torch.get_num_threads(), 'bf16': cpu_has_bf16(),
                    'memory_free': gib(psutil.virtual_memory().available)}, 'gpus': gpus}


def models() -> dict[str, str | None]:
    """Each model's folder, None where it isn't on this machine."""
    from modelscope_cartoon import mini
    from modelscope_cartoon.hub import cached_snapshot
    from modelscope_cartoon.styles import styles

    found = {mini.NAME: mini.path() if (mini.path() / 'model_index.json').is_file() else None}
    found |= {s.model_id: cached_snapshot(s.model_id, s.model_revision) for s in styles().values()}
    return {name: str(path) if path else None for name, path in found.items()}


def backends(models: dict[str, str | None]) -> dict[str, Any]:
    """Of each backend what it lacks here and, where nothing, of each model on this machine what stands in the way, and
    why `auto` would take it (None: it wouldn't, for it isn't prepared)."""
    import torch

    from modelscope_cartoon.backends import NAMES, get_backend

    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    rows = {}
    for name in NAMES[1:]:
        backend = get_backend(name)
        missing = backend.missing(device)
        here = {} if missing else {model: path for model, path in models.items() if path}
        rows[name] = {'missing': missing, 'by_name_only': backend.by_name_only,
                      'models': {model: _chances(backend, path, device) for model, path in here.items()}}
    return rows


def _chances(backend: Any, path: str, device: Any) -> dict[str, str | None]:
    import torch

    from modelscope_cartoon.errors import CartoonError
    from modelscope_cartoon.folder import ModelFolder
    from modelscope_cartoon.precision import best_dtype
    from modelscope_cartoon.weights import parameter_bytes

    try:
        folder = ModelFolder(path)
        obstacle = backend.obstacle(folder)
        dtype = best_dtype(device, parameter_bytes(folder, torch.float32))
        return {'obstacle': obstacle, 'recommended': None if obstacle else backend.recommended(folder, device, dtype)}
    except CartoonError as error:
        return {'obstacle': str(error), 'recommended': None}


def verdict(name: str, path: str) -> str | None:
    """What is wrong with a model on this machine: its files looked through, then held against the hub's sha256."""
    from modelscope_cartoon.errors import CartoonError
    from modelscope_cartoon.folder import ModelFolder
    from modelscope_cartoon.hub import changed_files

    try:
        ModelFolder(path)
        changed = changed_files(name, path) if '/' in name else []
    except CartoonError as error:
        return str(error)
    return f'{", ".join(changed)}: not what the hub has; delete and download again.' if changed else None


def copies() -> dict[str, str | None]:
    """What is wrong with each prepared copy, by its place in our cache: its files held against their manifest."""
    from modelscope_cartoon import cache, prepared

    return {f'{path.parent.name}/{path.name}': prepared.damage(path) for path in cache.entries()
            if path.parent.name == prepared.KIND}


def advice() -> list[str]:
    import torch

    from modelscope_cartoon.precision import cpu_has_bf16

    lines = []
    if not torch.cuda.is_available():
        lines.append('no CUDA GPU: the full-size models take minutes a picture here; the mini model takes seconds.')
        if not cpu_has_bf16():
            lines.append('this processor has no bf16 arithmetic: full-size models are drawn in float32 (5 GiB).')
        if importlib.util.find_spec('openvino') is None:
            lines.append('openvino would draw full-size models about 1.4 times as fast as torch here: pip install '
                         "'modelscope-cartoon[openvino]'; then: modelscope-cartoon prepare MODEL")
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        lines.append(f'cv2 can\'t be imported ({error}): drawing works without it, cv2.imwrite in your own code does '
                     'not. On Debian or Ubuntu: apt-get install libgl1 libglib2.0-0; anywhere: '
                     'pip uninstall opencv-python && pip install opencv-python-headless.')
    if importlib.util.find_spec('torchvision') is not None:
        lines.append('torchvision is installed; nothing here needs it, and one that does not match torch breaks '
                     'the host\'s own imports.')
    return lines


def _print(findings: dict[str, Any]) -> None:
    print(f'python        {findings["python"]}')
    for name, version in findings['packages'].items():
        print(f'{name:<22}{version or "MISSING: pip install modelscope-cartoon"}')
    cpu = findings['cpu']
    print(f'cpu           {cpu["threads"]} threads, bf16 {"yes" if cpu["bf16"] else "no"}, {cpu["memory_free"]} free')
    for gpu in findings['gpus'] or [{'name': 'none', 'free': '-'}]:
        print(f'gpu           {gpu["name"]}, free {gpu["free"]}')
    for name, path in findings['models'].items():
        print(f'model         {name}: {path or "not downloaded (drawn with --model full)"}')
    for name, backend in findings['backends'].items():
        print(f'backend       {name}: {backend["missing"] or "runs here"}')
        for model, chances in backend['models'].items():
            print(f'              {name} for {model}: {_said(name, backend["by_name_only"], model, chances)}')
    for name, wrong in findings.get('verified', {}).items():
        print(f'verified      {name}: {wrong or "as it should be"}')
    for line in findings['advice']:
        print(f'note          {line}')
    sys.stdout.flush()


def _said(backend: str, by_name_only: bool, model: str, chances: dict[str, str | None]) -> str:
    if by_name_only and chances['obstacle'] is None:
        return f'where it is named alone: --backend {backend}, and in modelscope-cartoon prepare {model}'
    return chances['obstacle'] or chances['recommended'] or (
        f'auto leaves it: it is not prepared (modelscope-cartoon prepare {model}), or gains nothing here; '
        f'--backend {backend} asks for it.')
