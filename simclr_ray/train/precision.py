"""What `train.precision` means on the device at hand."""

from __future__ import annotations

import torch


def auto_precision(*, on_gpu: bool, gpu_has_bf16: bool) -> str:
    """bf16 where the device has instructions for it: one without them is slower in bf16 than in float32."""
    return "bf16" if (gpu_has_bf16 if on_gpu else cpu_has_bf16()) else "float32"


def fix_float32() -> None:
    """Float32 on a GPU, the same wherever it runs: convolutions in TF32 (10 bits of mantissa), all other products, such
    as those of dense layers, losses and kNN, in float32.

    These are torch's own defaults, but for an environment that says otherwise, as NVIDIA's containers do.
    """
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies matrices of bf16: AVX512-BF16 or AMX."""
    has_avx512_bf16, has_amx = torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported
    return has_avx512_bf16() or has_amx()


def this_gpu_has_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)
