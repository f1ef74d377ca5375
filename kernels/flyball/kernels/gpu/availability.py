"""Whether the Triton kernels can run here, and why not; what they accept as tensors."""

import functools
import os
from importlib.metadata import version
from importlib.util import find_spec

import torch
from torch import Tensor

__all__ = [
    "available",
    "cache_bytes",
    "capability",
    "check_matrix",
    "check_places",
    "is_interpreted",
    "processors",
]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST = 2**31


def available(device: torch.device | str) -> tuple[bool, str]:
    """Whether the kernels run on tensors of this device, and the reason in words.

    They need Triton and a CUDA GPU of compute capability 8.0 or newer; or, for tests, Triton's
    interpreter, which takes tensors on the CPU.
    """
    device = torch.device(device)
    if find_spec("triton") is None:
        return False, "Triton is not installed; on Linux: pip install triton"
    if device.type == "cpu" and is_interpreted():
        triton, numpy = version("triton"), version("numpy")
        if _release(triton) < (3, 7) and _release(numpy) >= (2, 4):
            return False, f"the interpreter of Triton {triton} does not work with NumPy {numpy}"
        return True, "Triton's interpreter (TRITON_INTERPRET=1), for tests only"
    if device.type != "cuda":
        return False, f"the Triton kernels run on a CUDA GPU; the tensors are on {device}"
    if is_interpreted():
        return False, "TRITON_INTERPRET=1 is set: the interpreter takes tensors on the CPU"
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return False, "torch sees no CUDA GPU"
    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    if major < 8:
        return False, f"the Triton kernels need compute capability 8.0; {name} has {major}.{minor}"
    return True, f"Triton on {name}"


def is_interpreted() -> bool:
    """Whether Triton was told to interpret; it reads the variable when it is first imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def _release(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors to fill; 2 in the interpreter, so that programs do share the work."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def capability(device: torch.device) -> int:
    """Compute capability times ten; that of the newest known GPU in the interpreter."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def cache_bytes(device: torch.device) -> int:
    """Size of the L2 cache."""
    if device.type != "cuda":
        return 2**25
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def check_matrix(name: str, x: Tensor, shape: tuple[int | None, ...], like: Tensor) -> None:
    """That x is a contiguous tensor of this shape (None: any), of like's dtype and device.

    Raises:
        ValueError: it is not, or the kernels cannot compute in the dtype.
    """
    if x.dtype not in DTYPES:
        raise ValueError(
            f"{name}: the Triton kernels compute in float32, float16 and bfloat16; got {x.dtype}. "
            "Convert it, or ask for another implementation."
        )
    fits = len(x.shape) == len(shape) and all(
        want is None or size == want for size, want in zip(x.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{name}: the shape here is ({wanted}); got {tuple(x.shape)}.")
    if x.dtype != like.dtype or x.device != like.device:
        raise ValueError(
            f"{name}: {like.dtype} on {like.device} is wanted, like the other tensors; got "
            f"{x.dtype} on {x.device}. Convert or move one."
        )
    if not x.is_contiguous():
        raise ValueError(
            f"{name}: rows lie one after the other; got strides {x.stride()} for "
            f"{tuple(x.shape)}. Give x.contiguous(), or channels_last memory for activations."
        )


def check_places(name: str, x: Tensor, like: Tensor) -> None:
    """That x is a contiguous int32 list on like's device.

    Raises:
        ValueError: it is not.
    """
    if x.dtype != torch.int32 or x.ndim != 1 or not x.is_contiguous() or x.device != like.device:
        raise ValueError(
            f"{name}: a contiguous int32 list on {like.device}; got {x.dtype} {tuple(x.shape)} on "
            f"{x.device}. Take it from build_index."
        )
