"""Device, number format, memory and threads, as the operator's settings and the machine decide them."""

from __future__ import annotations

import os

import pytest
import torch
from pydantic import ValidationError

from worker.devices import choose_device, choose_dtype, is_fatal, is_out_of_memory, model_budget_bytes
from worker.errors import WorkerUnfit
from worker.settings import DeviceChoice, DtypeChoice, WorkerSettings

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def test_the_cpu_paints_in_full_precision_and_cuda_in_half_unless_told_otherwise() -> None:
    assert choose_dtype(WorkerSettings(), CPU) == torch.float32
    assert choose_dtype(WorkerSettings(), CUDA) == torch.float16
    assert choose_dtype(WorkerSettings(dtype=DtypeChoice.BFLOAT16), CUDA) == torch.bfloat16


def test_a_device_that_is_asked_for_and_not_there_stops_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(WorkerSettings()) == CPU
    with pytest.raises(WorkerUnfit, match="no CUDA device"):
        choose_device(WorkerSettings(device=DeviceChoice.CUDA))


def test_cuda_is_taken_where_it_is_unless_the_cpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(WorkerSettings()) == CUDA
    assert choose_device(WorkerSettings(device=DeviceChoice.CPU)) == CPU


def test_models_may_take_what_the_operator_says_or_half_of_the_machine() -> None:
    assert model_budget_bytes(WorkerSettings(model_memory_bytes=123), CPU) == 123
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert model_budget_bytes(WorkerSettings(), CPU) == memory // 2
    assert model_budget_bytes(WorkerSettings(), CPU, beside_bytes=1000) == (memory - 1000) // 2
    assert model_budget_bytes(WorkerSettings(model_memory_bytes=123), CPU, beside_bytes=1000) == 123


def test_one_core_is_left_to_the_others_unless_the_operator_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in ((1, 1), (2, 1), (8, 7)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _process, cores=cores: set(range(cores)))
        assert WorkerSettings().torch_thread_count == expected
    assert WorkerSettings(torch_threads=3).torch_thread_count == 3


@pytest.mark.parametrize(("name", "value"), [("DEVICE", "tpu"), ("MAX_BATCH", "0"), ("JOB_TIMEOUT_SECONDS", "-1")])
def test_a_bad_value_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name.lower()):
        WorkerSettings()


def test_every_worker_setting_is_described() -> None:
    for name, field in WorkerSettings.model_fields.items():
        assert field.description, name


def test_errors_of_the_device_are_told_apart() -> None:
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ):
        assert is_out_of_memory(error)
        assert not is_fatal(error)
    lost = torch.AcceleratorError("CUDA error: device-side assert triggered")
    assert is_fatal(lost)
    assert is_fatal(RuntimeError("CUDA error: unspecified launch failure"))
    assert not is_fatal(ValueError("wrong shape"))
    assert not is_out_of_memory(ValueError("out of memory"))
