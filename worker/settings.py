"""What the operator may choose about a worker: its device, its limits and how long things may take."""

from __future__ import annotations

import os
from enum import StrEnum
from functools import cache

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from storage.settings import EnvironmentSettings

MEBIBYTE = 1024**2


class DeviceChoice(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class DtypeChoice(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class WorkerSettings(EnvironmentSettings):
    device: DeviceChoice = Field(default=DeviceChoice.AUTO, description="auto takes CUDA where there is one.")
    dtype: DtypeChoice = Field(default=DtypeChoice.AUTO, description="auto: float32 on the CPU, float16 on CUDA.")
    torch_threads: PositiveInt | None = Field(
        default=None,
        description="CPU threads of the painting thread. Unset: all cores but one, since a thread pool that "
        "must share its last core (with the API, Redis) waits for its slowest thread at every layer.",
    )
    model_memory_bytes: PositiveInt | None = Field(
        default=None,
        description="How much the loaded models may take together, in bytes. Unset: 70 % of the GPU's memory, "
        "or half of the machine's on the CPU, of what the safety checker leaves.",
    )
    model_turn_seconds: PositiveFloat = Field(
        default=20.0,
        description="How long a model that does not fit beside the busy ones waits before jobs of those "
        "are held back for it.",
    )
    max_batch: PositiveInt = Field(
        default=8,
        description="Samples in one UNet call (twice as many rows with guidance); bounds memory and step time.",
    )
    flight_memory_bytes: PositiveInt = Field(
        default=1024 * MEBIBYTE,
        description="How much the jobs in flight may hold (latents, pictures), in bytes; others wait for their "
        "turn. A job alone always goes.",
    )
    addon_memory_bytes: NonNegativeInt | None = Field(
        default=None,
        description="How much the LoRAs, VAEs and IP-adapters that jobs have asked for may take together, beside "
        "the models, in bytes; those of running jobs always fit. Unset: a tenth of what the models may take.",
    )
    prompt_cache_entries: NonNegativeInt = Field(
        default=256, description="Prompt encodings kept for each loaded model; a long prompt counts as several."
    )
    picture_cache_bytes: NonNegativeInt = Field(
        default=64 * MEBIBYTE,
        description="Memory for encodings of the last pictures, for each loaded model: a client who tries "
        "prompts and seeds on one picture has it encoded once.",
    )

    worker_threads: PositiveInt = Field(
        default=8,
        description="Jobs that this worker holds at once, one thread each. Enough that some fetch, encode and "
        "store while others are painted and that a batch fills up; each one waits in memory with its pictures, "
        "and a crash puts all of them back into the queue.",
    )
    removal_processes: PositiveInt = Field(
        default=2,
        description="Jobs of the model `remove` done at once, each in a process of its own on one core; others wait in "
        "the queue, and one of WORKER_THREADS is never theirs where there are two.",
    )
    worker_name: str | None = Field(default=None, description="Unset: host name and process id.")
    clerk_interval_seconds: PositiveFloat = Field(
        default=0.1,
        description="How often progress is written, leases are renewed and cancellations are read.",
    )

    job_timeout_seconds: PositiveFloat = Field(
        default=600.0, description="From claim to stored pictures; then timed_out."
    )
    load_timeout_seconds: PositiveFloat = Field(
        default=600.0, description="A model that loads longer than this ends the process."
    )
    stall_timeout_seconds: PositiveFloat = Field(
        default=600.0,
        description="A painting thread without a sign of life for this long ends the process. One UNet call is the "
        "longest it is silent: under a second on a GPU, minutes for a large model on few CPU cores.",
    )
    shutdown_grace_seconds: PositiveFloat = Field(
        default=30.0, description="How long running jobs may go on after SIGTERM before they are given back."
    )
    store_retry_seconds: PositiveFloat = Field(
        default=30.0,
        description="How long storing a result is tried again before the job fails with storage_unavailable.",
    )

    max_input_bytes: PositiveInt = Field(default=32 * MEBIBYTE, description="Bytes of one input picture.")
    max_input_pixels: PositiveInt = Field(
        default=40_000_000,
        description="Pixels of one input picture, read from its header before it is decoded.",
    )
    fetch_timeout_seconds: PositiveFloat = Field(
        default=30.0, description="For fetching one input picture, all in all."
    )
    feather_pixels: NonNegativeInt = Field(
        default=4, description="Width of the soft edge inside the mask where the painted picture begins."
    )

    @property
    def torch_thread_count(self) -> int:
        return self.torch_threads or max(1, len(os.sched_getaffinity(0)) - 1)


@cache
def worker_settings() -> WorkerSettings:
    return WorkerSettings()
