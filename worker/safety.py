"""The operator's safety checker: looks at each finished picture of the jobs that want it, and hides some."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import cv2
import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from storage.job import SafetyAction
from worker.errors import SafetyCheckerUnavailable
from worker.hiding import hidden
from worker.loading import LOADING, quieten_libraries
from worker.model_files import BadModelFiles, find_part

log = structlog.get_logger(__name__)

Outcome = TypeVar("Outcome")
Picture = NDArray[np.uint8]

# A picture longer than it is broad is looked at in this many squares at most.
MAX_SQUARES = 8
PROCESSOR_CONFIG = "preprocessor_config.json"
# Where diffusers' pipelines have it, beside the folder of the checker.
PROCESSOR_FOLDER = "feature_extractor"


class Device(Protocol):
    """The engine: it does short work on its device between two ticks."""

    def aside(self, action: Callable[[], Outcome]) -> Outcome: ...


@dataclass(frozen=True, eq=False)
class LoadedChecker:
    """diffusers' StableDiffusionSafetyChecker, and what makes its input of a picture."""

    network: Any
    processor: Any
    device: torch.device

    def finds_something(self, pixels: torch.Tensor) -> bool:
        """In one square picture, as the processor made it. In the engine's thread only."""
        # The network blackens the pictures given beside; ours are hidden in another way, and by us.
        _, found = self.network(clip_input=pixels.to(self.device), images=[np.zeros(1)])
        return bool(found[0])


class Safety:
    """Checks pictures. From any thread; the checker is loaded once, by the first job that wants it.

    The network runs in the engine's thread, one square between two ticks, for the same reason that all
    work on the device does: calls from several threads would run into each other on CUDA, and on the CPU
    fight for its cores. A call is a tenth of the arithmetic of one guided step of Stable Diffusion 1 at 512
    pixels (162 and 1607 GFLOP, counted). What needs no device is done in the thread of the job.
    """

    def __init__(self, folder: Path | None, device: Device, torch_device: Callable[[], torch.device]) -> None:
        self._folder = folder
        self._engine = device
        self._torch_device = torch_device
        self._lock = threading.Lock()
        self._loaded: LoadedChecker | None = None

    def prepare(self, action: SafetyAction | None) -> None:
        """Before a job is painted: have the checker ready, if the job wants it. Raises SafetyCheckerUnavailable."""
        if action is not None:
            self._checker()

    def checked(self, picture: Picture, action: SafetyAction | None) -> tuple[Picture, bool]:
        """The picture that may be shown for a finished one (H, W, 3 RGB), and whether something was found in it.

        Raises SafetyCheckerUnavailable, and what the engine raises.
        """
        if action is None or not self._finds_something(picture):
            return picture, False
        log.info("picture_hidden", action=action.value)
        return hidden(picture, action), True

    def _finds_something(self, picture: Picture) -> bool:
        checker = self._checker()
        for square in squares(picture):
            pixels = checker.processor(images=[square], return_tensors="pt").pixel_values
            if self._engine.aside(lambda pixels=pixels: checker.finds_something(pixels)):  # type: ignore[misc]  # of this round
                return True
        return False

    def _checker(self) -> LoadedChecker:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def _load(self) -> LoadedChecker:
        if self._folder is None:
            log.warning("safety_checker_unavailable", reason="the models file names none")
            raise SafetyCheckerUnavailable
        started = time.monotonic()
        try:
            with LOADING:
                loaded = load_checker(self._folder, self._torch_device())
        except BadModelFiles as reason:
            log.warning("safety_checker_unavailable", reason=str(reason))
            raise SafetyCheckerUnavailable from reason
        except Exception as error:  # whatever a library raises, no picture goes unchecked
            log.exception("safety_checker_load_failed")
            raise SafetyCheckerUnavailable from error
        weights = sum(weight.nbytes for weight in loaded.network.parameters())
        seconds = round(time.monotonic() - started, 2)
        log.info("safety_checker_loaded", seconds=seconds, device=str(loaded.device), weight_bytes=weights)
        return loaded


def squares(picture: Picture) -> Iterator[Picture]:
    """Squares that cover the picture (H, W, 3), since the checker sees no other form.

    Stock pipelines show it the one in the middle, and what was painted beside it goes unseen. A picture of
    more than MAX_SQUARES times its breadth is squeezed.
    """
    height, width = picture.shape[:2]
    shorter, longer = sorted((height, width))
    count = min(MAX_SQUARES, math.ceil(longer / shorter))
    side = max(shorter, math.ceil(longer / count))
    for start in np.linspace(0, longer - side, count).round().astype(int):
        part = picture[start : start + side] if height > width else picture[:, start : start + side]
        yield part if side == shorter else cv2.resize(part, (side, side), interpolation=cv2.INTER_LINEAR)


def load_checker(folder: Path, device: torch.device) -> LoadedChecker:
    """Load a checker from local files. Raises BadModelFiles; everything else is a fault.

    In float32 whatever the models are in: half precision moves pictures over the threshold, and where it
    overflows nothing would be found.
    """
    quieten_libraries()
    # Imported only here, after quieten_libraries: it prints advice about image processors we do not use.
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker  # noqa: PLC0415

    variant = find_part(folder)
    try:
        network, report = StableDiffusionSafetyChecker.from_pretrained(
            folder,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BadModelFiles(f"{folder.name} does not fit its configuration") from error
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        if report.get(problem):
            raise BadModelFiles(f"{folder.name} does not fit its configuration: {len(report[problem])} {problem}")
    if not all(torch.isfinite(weight).all() for weight in network.parameters()):
        raise BadModelFiles(f"{folder.name} has weights that are no numbers")  # with which nothing is ever found
    network.to(device).eval().requires_grad_(False)
    return LoadedChecker(network, _processor(folder, int(network.config.vision_config.image_size)), device)


def _processor(folder: Path, size: int) -> Any:
    # Imported only here, after quieten_libraries: it says that it does without torchvision.
    from transformers import CLIPImageProcessor  # noqa: PLC0415

    for place in (folder, folder.parent / PROCESSOR_FOLDER):
        if (place / PROCESSOR_CONFIG).is_file():
            try:
                return CLIPImageProcessor.from_pretrained(place, local_files_only=True)
            except (OSError, ValueError, TypeError) as error:
                raise BadModelFiles(f"{place.name}/{PROCESSOR_CONFIG} cannot be used") from error
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
