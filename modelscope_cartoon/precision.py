"""Which floats to compute in: by device, by the model's size, or as the caller says."""
from __future__ import annotations

import torch

from modelscope_cartoon.errors import InvalidRequest

_NAMES = {'float32': torch.float32, 'fp32': torch.float32, 'float': torch.float32,
          'float16': torch.float16, 'fp16': torch.float16, 'half': torch.float16,
          'bfloat16': torch.bfloat16, 'bf16': torch.bfloat16}
_SMALL_MODEL = 400 * 2**20     # bytes in fp32; below it conversions cost on a CPU what bf16 saves


def parse_dtype(value: object) -> torch.dtype | None:
    """A torch dtype, or its name ('float16', 'fp16', 'torch.float16'); 'auto' and None give None."""
    if value is None or value == 'auto':
        return None
    dtype = _NAMES.get(str(value).lower().removeprefix('torch.'))
    if dtype is None:
        raise InvalidRequest(f'dtype is {value!r}; accepted: auto, float32, float16, bfloat16.')
    return dtype


def one_dtype(**given: object) -> torch.dtype | None:
    """The one that is given of `dtype`, `torch_dtype` (diffusers' name) and `torch_type` (the host's)."""
    dtypes = {parse_dtype(value) for value in given.values() if value is not None}
    if len(dtypes) > 1:
        raise InvalidRequest(f'{", ".join(k for k, v in given.items() if v is not None)} contradict each other; '
                             'give dtype only.')
    return dtypes.pop() if dtypes else None


def best_dtype(device: torch.device, fp32_bytes: int) -> torch.dtype:
    """bf16 where the hardware multiplies in it, else fp16 on a GPU and fp32 on a CPU.

    bf16 first on GPUs too: it has fp32's range, and Stable Diffusion 2.1's attention overflows in fp16.
    """
    if device.type == 'cuda':
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == 'cpu' and not is_small(fp32_bytes) and cpu_has_bf16():
        return torch.bfloat16
    return torch.float16 if device.type not in ('cpu', 'cuda') else torch.float32


def is_small(fp32_bytes: int) -> bool:
    """True for a model of whose speed its arithmetic is only a part."""
    return fp32_bytes <= _SMALL_MODEL


def cpu_has_bf16() -> bool:
    """True where the processor multiplies bf16 itself (AVX512-BF16 or AMX), not just converts."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, 'get_capabilities') else {}
    return bool(capabilities.get('avx512_bf16') or capabilities.get('amx_bf16') or capabilities.get('bf16'))
