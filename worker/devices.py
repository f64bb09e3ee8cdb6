"""The device a worker paints on: which one, in which number format, with how much memory, and its faults."""

from __future__ import annotations

import os

import torch

from worker.errors import WorkerUnfit
from worker.settings import DeviceChoice, DtypeChoice, WorkerSettings

GPU_MODEL_SHARE = 0.7
CPU_MODEL_SHARE = 0.5
ADDON_SHARE = 0.1  # of the models'
# How libraries below torch say "out of memory" in a plain RuntimeError.
OUT_OF_MEMORY_WORDS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def choose_device(settings: WorkerSettings) -> torch.device:
    """Raises WorkerUnfit when CUDA is asked for and there is none."""
    has_cuda = torch.cuda.is_available()
    if settings.device is DeviceChoice.CUDA and not has_cuda:
        raise WorkerUnfit("DEVICE is cuda, but PyTorch finds no CUDA device.")
    return torch.device("cuda" if has_cuda and settings.device is not DeviceChoice.CPU else "cpu")


def choose_dtype(settings: WorkerSettings, device: torch.device) -> torch.dtype:
    if settings.dtype is DtypeChoice.AUTO:
        return torch.float16 if device.type == "cuda" else torch.float32
    dtypes = {
        DtypeChoice.FLOAT32: torch.float32,
        DtypeChoice.FLOAT16: torch.float16,
        DtypeChoice.BFLOAT16: torch.bfloat16,
    }
    return dtypes[settings.dtype]


def model_budget_bytes(settings: WorkerSettings, device: torch.device, *, beside_bytes: int = 0) -> int:
    """How much the loaded models may take together; `beside_bytes`: what stays in memory for good beside them."""
    if settings.model_memory_bytes is not None:
        return settings.model_memory_bytes
    if device.type == "cuda":
        memory, share = torch.cuda.get_device_properties(device).total_memory, GPU_MODEL_SHARE
    else:
        memory, share = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), CPU_MODEL_SHARE
    return max(1, int((memory - beside_bytes) * share))


def addon_budget_bytes(settings: WorkerSettings, device: torch.device) -> int:
    """How much LoRAs, VAEs and IP-adapters that no running job uses may take together with those that one does."""
    if settings.addon_memory_bytes is not None:
        return settings.addon_memory_bytes
    return int(model_budget_bytes(settings, device) * ADDON_SHARE)


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY_WORDS)


def is_fatal(error: BaseException) -> bool:
    """After such an error every further call in this process fails too: the device's context is lost."""
    if is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)


def free_cached_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
