"""One image of a job inside the engine: from picture and seed to latents, step by step, and back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from storage.addons import Embedding
from storage.job import LoraUse, MaskedAreaInit, WeightedPrompt
from storage.schedulers import num_evaluations, num_steps
from worker.errors import InternalError
from worker.framing import Whole
from worker.ip_adapters import Glance, Look
from worker.loading import LoadedModel
from worker.looking import looking
from worker.loras import Wear
from worker.prompts import Conditioning
from worker.schedulers import Plan
from worker.walks import FULL, Walk, take_steps

PIXEL_MAX = 255.0


@dataclass(frozen=True)
class Painting:
    """What a job asks of the engine, at the size at which the model works.

    `picture` is (H, W, 3) RGB, `mask` (H, W) with 255 = repaint .. 0 = keep; `whole` is there where they are
    a part of something larger; `deadline` is a time.monotonic(). One image per seed.
    """

    job_id: str
    model: str
    prompt: str
    negative_prompt: str
    picture: NDArray[np.uint8] = field(repr=False)
    mask: NDArray[np.uint8] = field(repr=False)
    seeds: tuple[int, ...]
    num_inference_steps: int
    guidance_scale: float
    strength: float
    scheduler: str
    use_karras_sigmas: bool = False
    algorithm_type: str | None = None
    weighted_prompts: tuple[WeightedPrompt, ...] = ()
    clip_skip: int | None = None
    embeddings: tuple[Embedding, ...] = ()
    look: Look | None = None
    masked_area_init: MaskedAreaInit = MaskedAreaInit.ORIGINAL
    loras: tuple[LoraUse, ...] = ()
    vae: str | None = None
    whole: Whole | None = None
    deadline: float | None = None
    notes: dict[str, Any] = field(default_factory=dict, compare=False)
    """What the job is to be told; written before its first picture is there."""

    @property
    def num_evaluations(self) -> int:
        """UNet evaluations of one picture."""
        return num_evaluations(self.num_inference_steps, self.strength, self.scheduler)

    @property
    def plan(self) -> Plan:
        steps = num_steps(self.num_inference_steps, self.strength)
        return Plan(self.scheduler, self.use_karras_sigmas, self.algorithm_type, self.num_inference_steps, steps)


@dataclass(frozen=True)
class CallShape:
    """What must be equal for samples to share a UNet call."""

    model: str
    latent_shape: tuple[int, ...]
    conditioning_length: int
    ip_adapter: Hashable
    dtype: torch.dtype
    adapters: tuple[Wear, ...] = ()


@dataclass(eq=False, kw_only=True)
class Sample:
    """One image being made. Tensors have one row and lie on the model's device; timesteps on the CPU.

    Where there is a `walk`, its weights make the steps, and the scheduler takes none.
    `masked_latents` is for UNets of 9 channels (they are shown mask and masked picture). `kept_latents`
    are those of the picture, put back after every step where it is kept: for UNets of 4 channels, and for
    all where the mask has gray (`strength`, from 0 = keep to 1 = repaint).
    """

    model: LoadedModel
    generator: torch.Generator
    scheduler: Any
    walk: Walk | None
    step_arguments: Mapping[str, Any]
    timesteps: torch.Tensor
    unet_timesteps: list[float]
    guidance_scale: float
    conditioning: Conditioning
    unconditional: Conditioning | None
    latents: torch.Tensor
    noise: torch.Tensor
    mask: torch.Tensor
    strength: torch.Tensor | None
    masked_latents: torch.Tensor | None
    kept_latents: torch.Tensor | None
    glance: Glance | None = None
    index: int = 0
    remembered: torch.Tensor | None = None
    """See walks.take_steps; (1, m, c * h * w)."""
    drawn: torch.Tensor | None = None
    """Fresh noise for the step to come, where that was begun already."""

    @property
    def finished(self) -> bool:
        return self.index >= len(self.timesteps)

    @property
    def call_shape(self) -> CallShape:
        return CallShape(
            model=self.model.id,
            latent_shape=tuple(self.latents.shape[1:]),
            conditioning_length=self.conditioning.hidden.shape[1],
            ip_adapter=self.glance.looker.name if self.glance else None,
            dtype=self.latents.dtype,
            adapters=self.model.loras.uses,
        )

    def unet_input(self) -> torch.Tensor:
        if self.walk is None:
            scaled: torch.Tensor = self.scheduler.scale_model_input(self.latents, self.timesteps[self.index])
        else:
            scale = self.walk.input_scales[self.index]
            scaled = self.latents if scale == 1 else self.latents * scale
        if self.masked_latents is None:
            return scaled
        return torch.cat([scaled, self.mask, self.masked_latents], dim=1)

    def advance(self, noise_prediction: torch.Tensor) -> None:
        """One step of this sample's scheduler."""
        if self.walk is not None:
            advance_together([self], [noise_prediction])
            return
        timestep = self.timesteps[self.index]
        latents = self.scheduler.step(
            noise_prediction, timestep, self.latents, **self.step_arguments, return_dict=False
        )[0]
        self.go_on(latents)

    def go_on(self, latents: torch.Tensor, remembered: torch.Tensor | None = None) -> None:
        """To the next step, with these latents."""
        self.latents = self.held_back(latents, self.index + 1)
        self.remembered, self.drawn = remembered, None
        self.index += 1

    def held_back(self, latents: torch.Tensor, index: int) -> torch.Tensor:
        """These latents with the picture, noised as for the step to come, back where it is kept at that step.

        Gray is a strength for each latent: with gray g, of 0..1, it is kept for the first 1 - g of the steps.
        """
        kept = self.kept_latents
        if kept is None:
            return latents
        if index < len(self.timesteps):
            kept = self.noised(kept, self.noise, index)
        return torch.lerp(kept, latents, self._free(index))

    def noised(self, picture: torch.Tensor, noise: torch.Tensor, index: int) -> torch.Tensor:
        """The picture's latents with as much noise as belongs to this step."""
        if self.walk is None:
            mixed: torch.Tensor = self.scheduler.add_noise(picture, noise, self.timesteps[index : index + 1])
            return mixed
        of_picture, of_noise = self.walk.levels[index]
        return torch.add(of_picture * picture, noise, alpha=of_noise)

    def _free(self, index: int) -> torch.Tensor:
        """1 where this step is free to paint, 0 where the picture is kept, (1, 1, h, w)."""
        if self.strength is None:
            return self.mask
        still_to_come = 1 - index / len(self.timesteps)
        return ((self.strength >= still_to_come) & (self.strength > 0)).to(self.latents.dtype)

    def decode(self) -> NDArray[np.uint8]:
        """The finished picture, (H, W, 3) RGB."""
        vae = self.model.vae
        scaled = self.latents / vae.config.scaling_factor
        scaled = scaled.to(vae.dtype)
        pixels: torch.Tensor = vae.decode(scaled, return_dict=False, generator=self.generator)[0]
        if not torch.isfinite(pixels).all():
            raise InternalError("The model gave values that are no picture.")
        levels = (pixels.float() * 0.5 + 0.5).clamp(0, 1) * PIXEL_MAX
        picture: NDArray[np.uint8] = levels.round().to(torch.uint8)[0].permute(1, 2, 0).contiguous().cpu().numpy()
        return picture


def advance_together(samples: Sequence[Sample], predictions: Sequence[torch.Tensor]) -> None:
    """One step of each of these samples, of one latent shape; those of equal memory are computed at once.

    Each one that draws does so from its own generator, as its scheduler would. Samples without a walk are left as
    they are: their schedulers step one by one. After an error those whose `index` has not moved may try again.
    """
    together: dict[int, list[tuple[Sample, Walk, torch.Tensor]]] = defaultdict(list)
    for sample, prediction in zip(samples, predictions, strict=True):
        if sample.walk is not None:
            together[sample.walk.num_remembered].append((sample, sample.walk, prediction))
    for group in together.values():
        _advance([sample for sample, _, _ in group], [walk for _, walk, _ in group], [each for _, _, each in group])


def _advance(samples: Sequence[Sample], walks: Sequence[Walk], predictions: Sequence[torch.Tensor]) -> None:
    latents, remembered = take_steps(
        walks=walks,
        indexes=[sample.index for sample in samples],
        latents=torch.cat([sample.latents for sample in samples]),
        predictions=torch.cat(list(predictions)),
        noise=[_draw(sample, walk) for sample, walk in zip(samples, walks, strict=True)],
        remembered=_all_remembered(samples, walks[0].num_remembered),
    )
    for row, sample in enumerate(samples):
        sample.go_on(latents[row : row + 1], remembered[row : row + 1])


def _draw(sample: Sample, walk: Walk) -> torch.Tensor | None:
    """The step's noise, drawn once, however often the step is tried."""
    if not walk.draws[sample.index]:
        return None
    if sample.drawn is None:
        dtype = walk.draw_dtype or sample.latents.dtype
        sample.drawn = torch.randn(sample.latents.shape, generator=sample.generator, dtype=dtype)
    return sample.drawn


def _all_remembered(samples: Sequence[Sample], count: int) -> torch.Tensor:
    first = samples[0].latents
    nothing = first.new_zeros((1, count, first.numel()), dtype=torch.float32)
    return torch.cat([nothing if sample.remembered is None else sample.remembered for sample in samples])


def predict_noise(samples: Sequence[Sample]) -> list[torch.Tensor]:
    """One UNet call for samples of one call shape: the guided noise prediction of each, (1, 4, h, w).

    Rows: the unconditional ones of the samples with guidance, then one of every sample (for a sample
    alone the stock pipeline's order).
    """
    model = samples[0].model
    model.put_on_loras()
    inputs = {sample: sample.unet_input() for sample in samples}
    guided = [(sample, sample.unconditional) for sample in samples if sample.unconditional is not None]
    rows = [sample for sample, _ in guided] + list(samples)
    conditioning = [unconditional for _, unconditional in guided] + [sample.conditioning for sample in samples]
    timesteps = torch.tensor([sample.unet_timesteps[sample.index] for sample in rows], dtype=FULL)
    with _shown([sample for sample, _ in guided], samples) as unet:
        noise: torch.Tensor = unet(
            torch.cat([inputs[sample] for sample in rows]),
            timesteps.to(model.device),
            encoder_hidden_states=torch.cat([each.hidden for each in conditioning]),
            added_cond_kwargs=_added(conditioning, samples[0]),
            return_dict=False,
        )[0]
    unconditional_of = {sample: noise[row : row + 1] for row, (sample, _) in enumerate(guided)}
    return [
        _guide(sample, unconditional_of.get(sample), noise[row : row + 1])
        for row, sample in enumerate(samples, start=len(guided))
    ]


@contextmanager
def _shown(guided: Sequence[Sample], samples: Sequence[Sample]) -> Iterator[Any]:
    """The UNet, with the samples' pictures before it, where they have any."""
    model = samples[0].model
    conditional = [sample.glance for sample in samples if sample.glance]
    if not conditional:
        yield model.unet
        return
    unconditional = [sample.glance for sample in guided if sample.glance]
    with looking(model.cross_attentions, conditional, unconditional):
        # A graph, where there are any, would do again what was done without the pictures.
        yield model.plain_unet


def _guide(sample: Sample, unconditional: torch.Tensor | None, conditional: torch.Tensor) -> torch.Tensor:
    if unconditional is None:
        return conditional
    return unconditional + sample.guidance_scale * (conditional - unconditional)


def _added(conditioning: Sequence[Conditioning], sample: Sample) -> dict[str, torch.Tensor] | None:
    """What a UNet of Stable Diffusion XL is told beside the prompt: its pooled encoding, and the size.

    Original size, crop and target size, as the stock pipeline has them where nothing is asked.
    """
    pooled = [each.pooled for each in conditioning if each.pooled is not None]
    if not pooled:
        return None
    height, width = (length * sample.model.latent_factor for length in sample.latents.shape[2:])
    time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=pooled[0].dtype, device=pooled[0].device)
    return {"text_embeds": torch.cat(pooled), "time_ids": time_ids.expand(len(pooled), -1)}
