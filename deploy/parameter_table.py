"""What each dialect does with each parameter, in deploy/PARAMETERS.md: `python -m deploy.parameter_table`.

Nothing of it is written down: the dialects' parsers are asked, so the table says what they do.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api.dialects.fal.input import InpaintInput
from api.dialects.family_fields import FIELDS
from api.dialects.stability.proto import generation_pb2 as wire
from api.dialects.stability.samplers import TWINS
from api.styles import STYLES
from deploy.parameter_probes import (
    ADDON_FAMILIES,
    FAMILIES,
    HONOURED,
    IGNORED,
    LENIENT_SCHEDULER,
    NO_EFFECT,
    OTHER_PICTURE,
    PICTURE,
    REFUSED,
    SCHEDULER,
    VARIANTS,
    Asked,
    Wish,
    ask_fal,
    ask_family,
    ask_stability,
    outcome,
    stability_fields,
)
from storage.job import SafetyAction
from storage.schedulers import KNOWN_SCHEDULERS, SOLVERS

DOCUMENT = Path(__file__).parent / "PARAMETERS.md"
TABLE_BEGIN, TABLE_END = (
    "<!-- parameters: made by python -m deploy.parameter_table -->\n",
    "<!-- end of parameters -->\n",
)
NOT_A_WORD = "–"
FLAG = ("yes", "no")
COLUMNS = (*VARIANTS, "fal", "Stability")
WITHOUT_WEIGHTS = tuple(each for each in FAMILIES if each not in ADDON_FAMILIES)
GROUPED = ("`scheduler`", "sampler")
NAMES_IN_A_LINE = 4
# About admission, before anything is read.
NOT_SHOWN = frozenset({"key"})

Change = Callable[[wire.Request], None]


@dataclass(frozen=True)
class Parameter:
    """One row. `{family}` in a value is the family of the model it is asked of.

    `values`: what a client may send, at least one away from the default. `beside`: what it needs at its side to
    mean anything. `reads`: the job's word for it, where a value may become another. `fal` and `stability`: their
    words for it; `fal_values` and `stability_value` where theirs differ. `label`: what the row is called, if not by
    its name.
    """

    name: str
    values: tuple[Any, ...]
    beside: Mapping[str, Any] = field(default_factory=dict)
    reads: str = ""
    fal: str = ""
    fal_values: tuple[Any, ...] = ()
    stability: Mapping[str, Change] = field(default_factory=dict)
    stability_value: Any = None
    label: str = ""

    @property
    def fal_name(self) -> str:
        name = self.fal or self.name
        return name if name in InpaintInput.model_fields else ""


def _change(change: Callable[[wire.Request], object]) -> Change:
    def apply(request: wire.Request) -> None:
        change(request)

    return apply


def _artifact(kind: int) -> Change:
    def apply(request: wire.Request) -> None:
        next(each for each in request.prompt if each.artifact.type == kind).artifact.binary = b"another"

    return apply


def _negative(request: wire.Request) -> None:
    request.prompt.add(text="blue").parameters.weight = -1


def _weight(request: wire.Request) -> None:
    request.prompt.add(text="a dog").parameters.weight = 0.5


def _style(request: wire.Request) -> None:
    request.extras.update({"$IPC": {"preset": next(iter(STYLES))}})


def _sampler(number: int) -> Change:
    return _change(lambda request: setattr(request.image.transform, "diffusion", number))


def _own(path: str) -> dict[str, Change]:
    return {path: dict(stability_fields())[path]}


def parameters() -> list[Parameter]:
    """Every parameter of every dialect, in the order of the table."""
    known = [*_prompting(), *_painting(), *_scheduling(), *_adding(), *_delivering()]
    named = {each.name for each in known} | NOT_SHOWN
    # Whatever the dialects read beside: one day's new fields stand here until they get a line above.
    known += [Parameter(each.name, ("yes", "1", "x")) for each in FIELDS if each.name not in named]
    spoken = {each.fal_name for each in known}
    known += [
        Parameter(name, (), fal=name, fal_values=("x", 1)) for name in InpaintInput.model_fields if name not in spoken
    ]
    spoken = {path for each in known for path in each.stability}
    return known + [
        Parameter("", (), stability={path: set_it}) for path, set_it in stability_fields() if path not in spoken
    ]


def _prompting() -> list[Parameter]:
    return [
        Parameter(
            "model_id",
            ("another-{family}",),
            fal="model_name",
            stability={
                "engine_id": _change(lambda request: setattr(request, "engine_id", f"another-{request.engine_id}"))
            },
        ),
        Parameter(
            "prompt",
            ("a dog",),
            stability={"text": _change(lambda request: setattr(request.prompt[0], "text", "a dog"))},
        ),
        Parameter("negative_prompt", ("blue",), stability={"text with a weight below 0": _negative}),
        Parameter("", (), stability={"weight": _weight}, label="weights of several texts"),
        Parameter("enhance_prompt", FLAG),
        Parameter("enhance_style", ("photographic", "anime"), {"enhance_prompt": "yes"}, stability={"extras": _style}),
        Parameter("clip_skip", ("2", "1")),
        Parameter("enhance_style", ("unheard-of",), label="`enhance_style` of another name"),
        Parameter(
            "embeddings_model",
            ("embedding-{family}",),
            {"negative_prompt": "{family}"},
            fal="embeddings",
            fal_values=([{"path": "embedding-{family}"}],),
        ),
        Parameter("embeddings_model", ("embedding-{family}",), label="`embeddings_model` without its word"),
    ]


def _painting() -> list[Parameter]:
    return [
        Parameter(
            "init_image",
            (OTHER_PICTURE,),
            fal="image_url",
            stability={"ARTIFACT_IMAGE": _artifact(wire.ARTIFACT_IMAGE)},
        ),
        Parameter(
            "mask_image", (OTHER_PICTURE,), fal="mask_url", stability={"ARTIFACT_MASK": _artifact(wire.ARTIFACT_MASK)}
        ),
        Parameter("width", ("256",), stability=_own("width")),
        Parameter("height", ("256",), stability=_own("height")),
        Parameter("samples", ("2",), stability=_own("samples")),
        Parameter("num_inference_steps", (7,), reads="num_inference_steps", stability=_own("steps")),
        Parameter("steps", (7,), reads="num_inference_steps"),
        Parameter(
            "num_inference_steps",
            (99,),
            reads="num_inference_steps",
            label="more steps than the limit",
            stability_value=99,
            stability={"steps": _change(lambda request: setattr(request.image, "steps", 99))},
        ),
        Parameter("guidance_scale", (3.0,), reads="guidance_scale", stability=_own("parameters.sampler.cfg_scale")),
        Parameter("strength", (0.5,), reads="strength", stability=_own("parameters.schedule.start")),
        Parameter("", (), stability=_own("masked_area_init")),
        Parameter("seed", (5,), reads="seed", stability=_own("seed")),
    ]


def _scheduling() -> list[Parameter]:
    schedulers = [
        Parameter(
            "scheduler",
            (each,),
            {"scheduler": "LCMScheduler" if each != "LCMScheduler" else SCHEDULER},
            reads="scheduler",
            label=f"`scheduler` {each}",
        )
        for each in sorted(KNOWN_SCHEDULERS)
    ]
    samplers = [
        Parameter(
            "",
            (),
            reads="scheduler",
            stability={"transform.diffusion": _sampler(number)},
            stability_value=twin.scheduler if twin.is_exact else None,
            label=f"sampler {wire.DiffusionSampler.Name(number).removeprefix('SAMPLER_')}",
        )
        for number, twin in TWINS.items()
        if twin.scheduler != SCHEDULER
    ]
    return [
        *schedulers,
        *samplers,
        Parameter("use_karras_sigmas", FLAG, {"scheduler": LENIENT_SCHEDULER}),
        Parameter(
            "use_karras_sigmas", ("yes",), {"scheduler": SCHEDULER}, label=f"`use_karras_sigmas` with {SCHEDULER}"
        ),
        Parameter("algorithm_type", (SOLVERS[-1],), {"scheduler": LENIENT_SCHEDULER}, reads="algorithm_type"),
        Parameter(
            "algorithm_type", (SOLVERS[-1],), {"scheduler": SCHEDULER}, label=f"`algorithm_type` with {SCHEDULER}"
        ),
    ]


def _adding() -> list[Parameter]:
    adapter = {"ip_adapter_id": "ip-adapter-{family}", "ip_adapter_image": OTHER_PICTURE, "ip_adapter_scale": 0.5}

    def but(name: str) -> dict[str, Any]:
        return {key: value for key, value in adapter.items() if key != name}

    return [
        Parameter(
            "lora_model", ("lora-{family}",), fal="loras", fal_values=([{"path": "lora-{family}", "scale": 0.5}],)
        ),
        Parameter("lora_strength", ("0.5",), {"lora_model": "lora-{family}"}),
        Parameter("vae", ("vae-{family}",)),
        Parameter(
            "ip_adapter_id",
            ("ip-adapter-{family}",),
            but("ip_adapter_id"),
            fal="ip_adapter",
            fal_values=([{"path": "ip-adapter-{family}", "ip_adapter_image_url": OTHER_PICTURE, "scale": 0.5}],),
        ),
        Parameter("ip_adapter_image", (OTHER_PICTURE,), {**adapter, "ip_adapter_image": PICTURE}),
        Parameter("ip_adapter_scale", (0.25,), but("ip_adapter_scale")),
        Parameter("ip_adapter_image", (OTHER_PICTURE,), label="`ip_adapter_image` without `ip_adapter_id`"),
        Parameter("ip_adapter_scale", (0.25,), label="`ip_adapter_scale` without `ip_adapter_id`"),
        *_made_for_one_family(but("ip_adapter_id")),
        Parameter("safety_checker", FLAG, fal="enable_safety_checker", fal_values=(True,)),
        Parameter("safetychecker", FLAG),
        Parameter("safety_checker_type", tuple(SafetyAction), {"safety_checker": "yes"}),
        Parameter("safety_checker_type", ("blur",), label="`safety_checker_type` without `safety_checker`"),
    ]


def _made_for_one_family(beside_adapter: Mapping[str, Any]) -> Iterator[Parameter]:
    """What the families differ in: an add-on goes onto a model of its own."""
    for family in ADDON_FAMILIES:
        scaled = [{"path": f"lora-{family}", "scale": 0.5}]
        label = f"made for {family}"
        yield Parameter(
            "lora_model", (f"lora-{family}",), fal="loras", fal_values=(scaled,), label=f"`lora_model` {label}"
        )
        yield Parameter("vae", (f"vae-{family}",), label=f"`vae` {label}")
        yield Parameter("ip_adapter_id", (f"ip-adapter-{family}",), beside_adapter, label=f"`ip_adapter_id` {label}")


def _delivering() -> list[Parameter]:
    hook = "https://example.com/hook"
    return [
        Parameter("base64", FLAG),
        Parameter("temp", FLAG),
        Parameter("webhook", (hook,)),
        Parameter("track_id", ("order 1",)),
        Parameter("instant_response", FLAG),
    ]


# -- cells ------------------------------------------------------------------------------------------


def cell(parameter: Parameter, column: str, model: str) -> str:
    """What the dialect of a column does with the parameter for a model of this family."""
    if column == "Stability":
        return _stability_cell(parameter, model)
    if column == "fal":
        if not parameter.fal_name:
            return NOT_A_WORD
        values = parameter.fal_values or parameter.values
        return _of_bodies(parameter, functools.partial(ask_fal, model), parameter.fal_name, values, model)
    if not parameter.values:
        return NOT_A_WORD
    ask = functools.partial(ask_family, VARIANTS[column], model)
    return _of_bodies(parameter, ask, parameter.name, parameter.values, model)


def _of_bodies(parameter: Parameter, ask: Callable[[Any], Asked], name: str, values: Sequence[Any], model: str) -> str:
    beside: Mapping[str, Any] = _filled(dict(parameter.beside), model)
    if ask(beside).job is None:
        beside = {}
    filled = [_filled(value, model) for value in values]
    return outcome(ask, beside, [Wish({**beside, name: each}, each) for each in filled], name, parameter.reads)


def _stability_cell(parameter: Parameter, model: str) -> str:
    if not parameter.stability:
        return NOT_A_WORD
    (change,) = parameter.stability.values()
    ask = functools.partial(ask_stability, model)
    reads = parameter.reads if parameter.label else ""
    return outcome(ask, lambda _request: None, [Wish(change, parameter.stability_value)], reads=reads)


def _filled(value: Any, model: str) -> Any:
    if isinstance(value, str):
        return value.replace("{family}", model)
    if isinstance(value, Mapping):
        return {key: _filled(each, model) for key, each in value.items()}
    return [_filled(each, model) for each in value] if isinstance(value, list) else value


# -- the table --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A parameter's name, what becomes of it in each column, and what becomes of it for a model without weights."""

    name: str
    cells: tuple[str, ...]
    weightless: frozenset[str]

    @property
    def is_idle(self) -> bool:
        return set(self.cells) <= {NOT_A_WORD, NO_EFFECT, IGNORED}


def rows() -> Iterator[Row]:
    for parameter in parameters():
        cells = []
        for column in COLUMNS:
            found = {model: cell(parameter, column, model) for model in ADDON_FAMILIES}
            usual, _ = Counter(found.values()).most_common(1)[0]
            others = [f"{model}: {said}" for model, said in found.items() if said != usual]
            cells.append("; ".join([_with_its_own_word(parameter, column, usual), *others]))
        weightless = {cell(parameter, column, model) for column in COLUMNS for model in WITHOUT_WEIGHTS}
        yield Row(_name(parameter), tuple(cells), frozenset(weightless) - {NOT_A_WORD})


def _name(parameter: Parameter) -> str:
    return parameter.label or f"`{parameter.name or next(iter(parameter.stability))}`"


def _with_its_own_word(parameter: Parameter, column: str, text: str) -> str:
    own = {"fal": parameter.fal_name, "Stability": next(iter(parameter.stability), "")}.get(column, "")
    return f"{text} (`{own}`)" if own and own != parameter.name and parameter.name and text != NOT_A_WORD else text


def table() -> str:
    """The table, what has no room in it, and what the model without weights makes of each parameter."""
    all_rows = list(rows())
    lines, below = _lines([row for row in all_rows if not row.is_idle])
    head = [f"| parameter | {' | '.join(COLUMNS)} |", f"| {' | '.join(['---'] * (1 + len(COLUMNS)))} |"]
    lists = [*below, *_idle(all_rows), *_of_weightless(all_rows)]
    return "\n".join([*head, *lines, "", *(f"- {each}" for each in lists)]) + "\n"


def _lines(shown: Sequence[Row]) -> tuple[list[str], list[str]]:
    """The table's lines, and lists of the names that would make one too wide.

    Schedulers and samplers share a line with those of which the same is to be said.
    """
    grouped: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for row in shown:
        kind, _, value = row.name.rpartition(" ")
        group = kind if kind in GROUPED else row.name
        grouped.setdefault((group, row.cells), []).append(value if kind in GROUPED else row.name)
    lines, below = [], []
    for (group, cells), names in grouped.items():
        name = group
        if group in GROUPED:
            name = f"{group}: {', '.join(names)}"
            if len(names) > NAMES_IN_A_LINE:
                name = f"{group}: {len(names)} names, listed below"
                below.append(f"{group}, {_said(cells)}: {', '.join(names)}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines, below


def _said(cells: Sequence[str]) -> str:
    return " / ".join(dict.fromkeys(text for text in cells if text != NOT_A_WORD))


def _idle(all_rows: Sequence[Row]) -> list[str]:
    """What no dialect does anything with, by who takes it."""
    takers: dict[tuple[str, ...], list[str]] = {}
    for row in all_rows:
        if row.is_idle:
            takers.setdefault(row.cells, []).append(row.name)
    return [
        f"{_said(cells)} ({', '.join(c for c, text in zip(COLUMNS, cells, strict=True) if text != NOT_A_WORD)}): "
        + ", ".join(names)
        for cells, names in takers.items()
    ]


def _of_weightless(all_rows: Sequence[Row]) -> list[str]:
    heeded = [row.name for row in all_rows if HONOURED in row.weightless]
    refused = [row.name for row in all_rows if row.weightless == {REFUSED} and "made for" not in row.name]
    names = " and ".join(f"`{name}`" for name in WITHOUT_WEIGHTS)
    return [f"{names} heeds: {', '.join(heeded)}. It refuses: {', '.join(refused)}. All else is idle there."]


def with_table(document: str) -> str:
    """The document with its table of parameters as it should be."""
    before, _, rest = document.partition(TABLE_BEGIN)
    _, _, after = rest.partition(TABLE_END)
    return before + TABLE_BEGIN + table() + TABLE_END + after


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text()))
