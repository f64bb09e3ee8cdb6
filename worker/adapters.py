"""What a job puts onto its model (LoRAs, a VAE, an IP-adapter): found, loaded in the job's thread, fitted, kept."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import structlog

from storage.addons import Addons, IpAdapter, find_addon
from storage.job import LoraUse
from storage.model_catalog import ModelEntry
from worker.devices import is_fatal, is_out_of_memory
from worker.errors import AddonUnavailable, JobFailed, OutOfMemory, WorkerUnfit
from worker.ip_adapter_files import BadIpAdapter, load_image_encoder, load_weights
from worker.ip_adapters import Looker, fit_looker
from worker.loading import LoadedModel, quieten_libraries
from worker.lora_files import BadLora, import_reader, read_lora
from worker.loras import FittedLora, join_loras
from worker.models import Load
from worker.sample import Painting
from worker.shelf import POLL_SECONDS, Check, Shelf, Sized
from worker.vaes import BadVae, LoadedVae, load_vae
from worker.versions import Version, version_of

log = structlog.get_logger(__name__)

# The job's names for where they are asked for.
FIELDS = {"LoRA": "lora_model", "VAE": "vae", "IP-adapter": "ip_adapter_id"}
DEFAULT_CAPACITY_BYTES = 2**28


class Adapters:
    """The LoRAs, VAEs and IP-adapters of the models file, those in use and the last ones in memory.

    Safe to use from many threads. `loading` is held while a library builds something: it must not do that
    beside the loading of a model. A file that has been replaced is read again by the next painting that needs it.
    """

    def __init__(
        self,
        addons: Addons,
        *,
        capacity_bytes: int = DEFAULT_CAPACITY_BYTES,
        loading: threading.Lock | None = None,
    ) -> None:
        self._addons = addons
        self._loading = loading or threading.Lock()
        self.shelf = Shelf(capacity_bytes)
        quieten_libraries()
        for lora in addons.loras:
            import_reader(lora.family)

    @contextmanager
    def fitted(self, model: LoadedModel, painting: Painting, check: Check) -> Iterator[LoadedModel]:
        """The model with what the painting puts onto it: another view of the same weights.

        Blocks while things load; `check` may raise to leave. Raises AddonUnavailable. What has a strength of 0 is left
        out, and so is only looked for.
        """
        uses = [use for use in painting.loras if use.strength]
        if not uses and painting.vae is None and painting.look is None:
            yield model
            return
        with ExitStack() as held:
            loras = join_loras([self._fit_lora(model, use, held, check) for use in uses])
            fitted = dataclasses.replace(model, loras=loras, plain=model)
            if painting.vae is not None:
                loaded, version = self._vae(model, painting.vae, held, check)
                fitted = dataclasses.replace(fitted, vae=loaded.vae, vae_id=f"{painting.vae} {version}")
            if painting.look is not None:
                fitted = dataclasses.replace(fitted, looker=self._looker(model, painting.look.adapter, held, check))
            yield fitted

    def _fit_lora(self, model: LoadedModel, use: LoraUse, held: ExitStack, check: Check) -> FittedLora:
        addon = find_addon(self._addons.loras, use.id)
        if addon is None:
            raise _unavailable("LoRA", use.id, model, "it is not in the models file any more")
        # Kohya's names are read by the number of layers in a block; else a LoRA is the same for every model.
        unet_config = model.unet.config
        key = ("lora", addon.id, addon.family, str(unet_config.layers_per_block))
        read = functools.partial(
            read_lora, addon.path, unet_config, family=addon.family, device=model.device, dtype=model.dtype
        )
        with _blaming("LoRA", use.id, model):
            lora, version = self._take(key, addon.path, read, held, check)
            return model.lora_host.fit(use, lora, version)

    def _vae(self, model: LoadedModel, name: str, held: ExitStack, check: Check) -> tuple[LoadedVae, Version]:
        addon = find_addon(self._addons.vaes, name)
        if addon is None:
            raise _unavailable("VAE", name, model, "it is not in the models file any more")

        load = self._alone(functools.partial(load_vae, addon.path, device=model.device, dtype=model.dtype), check)
        with _blaming("VAE", name, model):
            loaded, version = self._take(("vae", addon.id), addon.path, load, held, check)
        if loaded.latent_factor != model.latent_factor:
            raise _unavailable("VAE", name, model, "its latents are of another size than the model's")
        return loaded, version

    def _looker(self, model: LoadedModel, adapter: IpAdapter, held: ExitStack, check: Check) -> Looker:
        def take(kind: str, path: Path, load: Callable[..., Sized]) -> tuple[Any, Version]:
            here = functools.partial(load, path, device=model.device, dtype=model.dtype)
            return self._take((kind, path), path, self._alone(here, check), held, check)

        with _blaming("IP-adapter", adapter.id, model):
            weights, version = take("ip_adapter", adapter.path, load_weights)
            # Several adapters share one.
            encoder, encoder_version = take("image_encoder", adapter.image_encoder, load_image_encoder)
            looker = fit_looker(adapter, weights, encoder, model.cross_attentions)
        return dataclasses.replace(looker, version=version, encoder_version=encoder_version)

    def _alone(self, load: Callable[[], Sized], check: Check) -> Callable[[], Sized]:
        """The same, while nothing else is loaded."""

        def hold_and_load() -> Sized:
            while not self._loading.acquire(timeout=POLL_SECONDS):
                check()
            try:
                return load()
            finally:
                self._loading.release()

        return hold_and_load

    def _take(
        self, key: Hashable, path: Path, load: Callable[[], Sized], held: ExitStack, check: Check
    ) -> tuple[Any, Version]:
        # Asked before it is read: what changes in between is read once more by the next one, and never missed.
        version = version_of(path)
        return held.enter_context(self.shelf.hold(key, load, check, version=version)), version


@contextmanager
def _blaming(kind: str, name: str, model: LoadedModel) -> Iterator[None]:
    """What goes wrong here is the fault of the files, unless the job leaves or the device fails."""
    try:
        yield
    except (BadLora, BadVae, BadIpAdapter) as reason:
        raise _unavailable(kind, name, model, str(reason)) from reason
    except (JobFailed, WorkerUnfit):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemory from error
        if is_fatal(error):
            raise
        log.warning("addon_broke", kind=kind, addon=name, exc_info=True)
        raise _unavailable(kind, name, model, "its files cannot be read") from error


def _unavailable(kind: str, name: str, model: LoadedModel, reason: str) -> AddonUnavailable:
    log.warning("addon_unavailable", kind=kind, addon=name, model=model.id, reason=reason)
    text = f"The {kind} {name} cannot be used with the model {model.id}: {reason}."
    return AddonUnavailable(text, field=FIELDS[kind])


def one_at_a_time(load: Load, loading: threading.Lock) -> Load:
    """The same, holding the lock."""

    def hold_and_load(entry: ModelEntry) -> LoadedModel:
        with loading:
            return load(entry)

    return hold_and_load
