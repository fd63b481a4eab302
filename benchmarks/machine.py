"""On what, with what, and how busy: the part of a result that says what its seconds are worth."""
from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ('torch', 'diffusers', 'transformers', 'modelscope', 'accelerate', 'openvino', 'nncf', 'torch_tensorrt',
            'numpy')


def describe() -> dict[str, Any]:
    import psutil
    import torch

    memory = psutil.virtual_memory()
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, 'get_capabilities') else {}
    return {'processor': _processor(), 'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity')
            else os.cpu_count(), 'threads': torch.get_num_threads(),
            'capabilities': sorted(name for name, there in capabilities.items() if there is True),
            'memory_gib': round(memory.total / 2**30, 1), 'available_gib': round(memory.available / 2**30, 1),
            'system': platform.platform(), 'python': platform.python_version(), 'gpu': _gpu(),
            'load_before': load_average(), 'load_after': None}


def load_average() -> list[float] | None:
    """Over 1, 5 and 15 minutes; None on Windows."""
    return [round(load, 2) for load in os.getloadavg()] if hasattr(os, 'getloadavg') else None


def versions() -> dict[str, str]:
    """Of what is installed; a package that is absent from the result is absent from the machine."""
    found = {'modelscope_cartoon': _own_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _own_version() -> str:
    import modelscope_cartoon
    return modelscope_cartoon.__version__


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


def _gpu() -> dict[str, Any] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return {'name': properties.name, 'memory_gib': round(properties.total_memory / 2**30, 1),
            'capability': f'{properties.major}.{properties.minor}', 'cuda': torch.version.cuda,
            'cudnn': torch.backends.cudnn.version()}


def command() -> str:
    """As it was typed, without the interpreter's own path."""
    module = Path(sys.argv[0]).stem
    return ' '.join(['python', '-m', f'benchmarks.{module}', *sys.argv[1:]])
