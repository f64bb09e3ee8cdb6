"""A request message becomes a job: what is asked, read, checked, with defaults filled in."""

from __future__ import annotations

import base64
import math
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from api.dialects.stability.errors import Code, WireStatus
from api.dialects.stability.proto import generation_pb2 as wire
from api.dialects.stability.samplers import TWINS, Twin
from api.errors import InvalidFields, Problem, UnknownModel
from api.styles import STYLES, styled
from api.weightless import needs_prompt, settled
from storage.job import MAX_SEED, InpaintJob, MaskedAreaInit, MaskPaints, SafetyAction, WeightedPrompt
from storage.model_catalog import ModelCatalog, ModelEntry

NAME = "stability"
MIN_SIZE, MAX_SIZE = 1, 2048
MAX_SAMPLES = 10
MAX_STEPS = 150
MAX_CFG_SCALE = 35
DEFAULT_WEIGHT = 1.0
SHOWN_CHARS = 100
BETWEEN_TEXTS = " | "
# This client paints white what is to be repainted, unlike all others.
CLIENT_OF_INVERTED_MASKS = "stablestudio"
FILLS = {
    wire.MASKED_AREA_INIT_ZERO: MaskedAreaInit.ZERO,
    wire.MASKED_AREA_INIT_RANDOM: MaskedAreaInit.RANDOM,
    wire.MASKED_AREA_INIT_ORIGINAL: MaskedAreaInit.ORIGINAL,
}


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What a request needs besides itself to become a job. `client`: what the caller says it is.

    `checks_pictures`: with the safety checker, where there is one. No request of this wire asks for it.
    """

    key_id: str
    client: str
    catalog: ModelCatalog
    max_steps: int
    max_prompt_chars: int
    now: float
    random_seed: Callable[[], int]
    checks_pictures: bool = True
    new_id: Callable[[], str] = lambda: str(uuid.uuid4())


def parse(request: wire.Request, circumstances: Circumstances) -> InpaintJob:
    """The job that a request asks for; its pictures are in it as base64.

    Raises UnknownModel, InvalidFields with every problem found, and WireStatus for what is no inpainting.
    """
    entry = circumstances.catalog.find(request.engine_id)
    if entry is None:
        raise UnknownModel(field="engine_id", name=request.engine_id[:SHOWN_CHARS])
    _expect_image_parameters(request)
    image, problems = request.image, _Problems()
    prompts = _prompts(request, entry, circumstances.max_prompt_chars, problems)
    init_image = _picture(request.prompt, wire.ARTIFACT_IMAGE, "init_image", problems)
    mask_image = _picture(request.prompt, wire.ARTIFACT_MASK, "mask_image", problems)
    samples = problems.whole("samples", image.samples or 1, 1, MAX_SAMPLES)
    steps = problems.whole("steps", image.steps or entry.num_inference_steps, 1, MAX_STEPS)
    width, height = (_side(image, name, problems) for name in ("width", "height"))
    cfg_scale, start = _step_parameters(image, entry, problems)
    twin, fill = _twin(image, entry, problems), _fill(image, problems)
    problems.raise_any()
    preset = _preset(request)
    prompts = _with_style(prompts, preset)
    seeds = _seeds(image.seed, samples, circumstances.random_seed)
    job = InpaintJob(
        job_id=circumstances.new_id(),
        image_id=circumstances.new_id(),
        key_id=circumstances.key_id,
        dialect=NAME,
        model=entry.id,
        prompt=_shown(prompts, 1),
        negative_prompt=_shown(prompts, -1),
        weighted_prompts=prompts if _are_several(prompts) else (),
        init_image=init_image,
        mask_image=mask_image,
        mask_paints=_mask_paints(circumstances.client),
        masked_area_init=fill,
        width=width,
        height=height,
        num_images=samples,
        num_inference_steps=min(steps, circumstances.max_steps),
        guidance_scale=cfg_scale,
        strength=start,
        seed=seeds[0],
        seeds=seeds,
        scheduler=twin.scheduler,
        algorithm_type=twin.algorithm_type,
        safety_checker=_safety(circumstances),
        wire=_noted(request, twin, preset),
        submitted_at=circumstances.now,
    )
    return settled(job, entry)


class _Problems:
    """What is wrong with the fields read so far."""

    def __init__(self) -> None:
        self._found: list[Problem] = []

    def add(self, field: str, kind: str, **facts: Any) -> None:
        self._found.append(Problem(field, kind, facts))

    def whole(self, field: str, value: int, low: int, high: int) -> int:
        if not low <= value <= high:
            self.add(field, "out_of_range", low=low, high=high)
        return value

    def real(self, field: str, value: float, low: float, high: float) -> float:
        if not math.isfinite(value):
            self.add(field, "not_finite")
        elif not low <= value <= high:
            self.add(field, "out_of_range", low=low, high=high)
        # What is a float on the wire came from a shorter decimal: 0.7, not 0.699999988.
        return float(f"{value:.7g}")

    def raise_any(self) -> None:
        if self._found:
            raise InvalidFields(self._found)


def _expect_image_parameters(request: wire.Request) -> None:
    asked = request.WhichOneof("params")
    if asked is None:
        raise InvalidFields([Problem("image", "missing")])
    if asked != "image":
        raise WireStatus(Code.UNIMPLEMENTED, f"This service paints into pictures; it knows no {asked} requests.")
    if request.image.transform.HasField("upscaler"):
        raise WireStatus(Code.UNIMPLEMENTED, "This service paints into pictures; it knows no upscalers.")


def _prompts(
    request: wire.Request, entry: ModelEntry, max_chars: int, problems: _Problems
) -> tuple[WeightedPrompt, ...]:
    """The texts that count, at least one."""
    texts = [each for each in request.prompt if each.WhichOneof("prompt") == "text"]
    if not texts and needs_prompt(entry):
        problems.add("prompt", "missing")
    found = []
    for each in texts:
        if len(each.text) > max_chars:
            problems.add("prompt", "too_long", high=max_chars)
        weight = each.parameters.weight if each.parameters.HasField("weight") else DEFAULT_WEIGHT
        if not math.isfinite(weight):
            problems.add("weight", "not_finite")
        elif weight:
            found.append(WeightedPrompt(each.text.replace("\0", "").strip(), float(f"{weight:.7g}")))
    return tuple(found) or (WeightedPrompt("", DEFAULT_WEIGHT),)


def _picture(prompts: Iterable[wire.Prompt], kind: int, name: str, problems: _Problems) -> str:
    """Found by its type: clients send picture and mask in either order."""
    for each in prompts:
        if each.WhichOneof("prompt") == "artifact" and each.artifact.type == kind and each.artifact.binary:
            return base64.b64encode(each.artifact.binary).decode()
    problems.add(name, "missing")
    return ""


def _step_parameters(image: wire.ImageParameters, entry: ModelEntry, problems: _Problems) -> tuple[float, float]:
    """The guidance scale and where the schedule starts; of several steps' parameters the first that has them."""
    cfg_scale, start = entry.guidance_scale, 1.0
    for step in reversed(image.parameters):
        if step.sampler.HasField("cfg_scale"):
            cfg_scale = problems.real("cfg_scale", step.sampler.cfg_scale, 0, MAX_CFG_SCALE)
        if step.schedule.HasField("start"):
            start = problems.real("schedule.start", step.schedule.start, 0, 1)
    return cfg_scale, start


def _twin(image: wire.ImageParameters, entry: ModelEntry, problems: _Problems) -> Twin:
    """What paints for the sampler asked for; the model's own scheduler where none is."""
    own = Twin(entry.scheduler)
    if not image.transform.HasField("diffusion"):
        return own
    if image.transform.diffusion not in TWINS:
        problems.add("transform.diffusion", "not_a_choice")
    return TWINS.get(image.transform.diffusion, own)


def _side(image: wire.ImageParameters, name: str, problems: _Problems) -> int | None:
    """`width` or `height`; None where it is left open."""
    asked = getattr(image, name)
    return problems.whole(name, asked, MIN_SIZE, MAX_SIZE) if asked else None


def _fill(image: wire.ImageParameters, problems: _Problems) -> MaskedAreaInit:
    fill = FILLS.get(image.masked_area_init)
    if fill is None:
        problems.add("masked_area_init", "not_a_choice")
    return fill or MaskedAreaInit.ZERO


def _mask_paints(client: str) -> MaskPaints:
    is_inverted = client.strip().casefold() == CLIENT_OF_INVERTED_MASKS
    return MaskPaints.WHITE if is_inverted else MaskPaints.BLACK


def _safety(circumstances: Circumstances) -> SafetyAction | None:
    has_checker = circumstances.catalog.addons.safety_checker is not None
    return SafetyAction.BLUR if has_checker and circumstances.checks_pictures else None


def _preset(request: wire.Request) -> str:
    """The style asked for; "" for none and for one that is not known here."""
    for value in request.extras.fields.values():
        name = value.struct_value.fields["preset"].string_value if "preset" in value.struct_value.fields else ""
        if name in STYLES:
            return name
    return ""


def _with_style(prompts: tuple[WeightedPrompt, ...], preset: str) -> tuple[WeightedPrompt, ...]:
    if not preset:
        return prompts
    positive, negative = STYLES[preset]
    changed = tuple(
        WeightedPrompt(styled(each.text, positive if each.weight > 0 else negative), each.weight) for each in prompts
    )
    if any(each.weight < 0 for each in prompts):
        return changed
    return (*changed, WeightedPrompt(negative, -DEFAULT_WEIGHT))


def _are_several(prompts: Sequence[WeightedPrompt]) -> bool:
    """Whether there is more than one text for what to paint, or for what not."""
    positive = sum(each.weight > 0 for each in prompts)
    return positive > 1 or len(prompts) - positive > 1


def _shown(prompts: Sequence[WeightedPrompt], sign: int) -> str:
    return BETWEEN_TEXTS.join(each.text for each in prompts if each.weight * sign > 0)


def _seeds(listed: Sequence[int], samples: int, random_seed: Callable[[], int]) -> tuple[int, ...]:
    """One for each picture. What the list leaves open, or says again, goes on from its first value, +1 each."""
    seeds: list[int] = []
    for seed in listed[:samples]:
        chosen = seed or random_seed()
        if chosen not in seeds:
            seeds.append(chosen)
    first = seeds[0] if seeds else random_seed()
    seeds = seeds or [first]
    following = first
    while len(seeds) < samples:
        # 0 asks for a random one, so it is nobody's seed.
        following = following % MAX_SEED + 1
        if following not in seeds:
            seeds.append(following)
    return tuple(seeds)


def _noted(request: wire.Request, twin: Twin, preset: str) -> dict[str, Any]:
    """What the record keeps of the wire's own words."""
    noted: dict[str, Any] = {
        "request_id": request.request_id[:SHOWN_CHARS],
        "engine_id": request.engine_id[:SHOWN_CHARS],
        "style_preset": preset or None,
    }
    if request.image.transform.HasField("diffusion"):
        sampler = wire.DiffusionSampler.Name(request.image.transform.diffusion)
        noted |= {"sampler": sampler, "sampler_painted_as": twin.name}
    return noted
