"""`inpaintd models`: which models and add-ons there are, adding and fetching them, trying them out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from storage.addons import Addon, Addons, IpAdapter, find_addon
from storage.model_catalog import BadModelsFile, Hub, ModelCatalog, ModelEntry, NoWeights, SingleFile, load_catalog
from storage.settings import storage_settings
from worker.adding import NewEntry, NotAdded, add_entry, id_from, placed
from worker.headers import BadModelFiles
from worker.model_files import find_files
from worker.pulling import PullFailed, family_on_hub
from worker.pulling import pull as pull_from_hub
from worker.recognising import FAMILY_NAMES, Found, of_family, recognise
from worker.settings import MEBIBYTE, worker_settings

models = typer.Typer(no_args_is_help=True, help="The models file: models, and what goes onto them.")
console = Console(highlight=False)

CHECKER = "safety_checker"
HASH_CHUNK_BYTES = 2**20
KINDS = {
    "loras": "LoRA",
    "vaes": "VAE",
    "ip_adapters": "IP-adapter",
    "embeddings": "textual inversion",
    CHECKER: "safety checker",
}
READ_AGAIN = "Where a file is replaced under its name, the next job that uses it has the new one."
READ_ONCE = "Workers that have it loaded go on with what they have read: restart them after a change."

ModelName = Annotated[str, typer.Argument(help="The model's id or one of its aliases.")]
AnyName = Annotated[str, typer.Argument(help="Id or alias of a model or add-on; or safety_checker.")]
Text = str | None


@models.command("list")
def list_models(
    aliases: Annotated[bool, typer.Option("--aliases", help="Their other names too.")] = False,
) -> None:
    """Show every model and add-on, and whether its files are here."""
    catalog = _catalog()
    table = Table(Column("id", overflow="fold"), "family", "size", "from", "here")
    for entry in catalog.entries:
        marked = f"{entry.id} (default)" if entry is catalog.default else entry.id
        sizes = f"{entry.native_size} ({entry.min_size}-{entry.max_size})"
        table.add_row(marked, entry.family, sizes, _origin(entry), _presence(entry))
    console.print(table)
    addons = Table("kind", Column("id", overflow="fold"), "family", "here")
    for section, addon in _addons(catalog.addons):
        addons.add_row(KINDS[section], addon.id, addon.family, _addon_presence(addon.path))
    if catalog.addons.safety_checker is not None:
        addons.add_row(KINDS[CHECKER], CHECKER, "", _addon_presence(catalog.addons.safety_checker))
    if addons.row_count:
        console.print(addons)
    if aliases:
        _print_aliases(catalog)


def _print_aliases(catalog: ModelCatalog) -> None:
    everything: list[ModelEntry | Addon] = [*catalog.entries, *(addon for _, addon in _addons(catalog.addons))]
    for each in everything:
        if each.aliases:
            console.print(f"{each.id} is also: {', '.join(each.aliases)}", markup=False)


@models.command()
def add(
    what: Annotated[str, typer.Argument(help="A .safetensors file, a folder, or a repository of the hub: OWNER/NAME.")],
    *,
    id: Annotated[Text, typer.Option(help="Its name; else made from the file's.")] = None,
    alias: Annotated[list[str] | None, typer.Option(help="Another name; may be given several times.")] = None,
    default: Annotated[bool, typer.Option("--default", help="Make this model the default.")] = False,
    family: Annotated[Text, typer.Option(help="sd or sdxl, where it cannot be seen.")] = None,
    config: Annotated[Path | None, typer.Option(help="For a checkpoint: a folder with its own configuration.")] = None,
    prediction_type: Annotated[Text, typer.Option(help="epsilon or v_prediction, where the files are wrong.")] = None,
    image_encoder: Annotated[Path | None, typer.Option(help="For an IP-adapter: its image encoder's folder.")] = None,
    token: Annotated[Text, typer.Option(help="For a textual inversion: its word in prompts; else its id.")] = None,
    revision: Annotated[Text, typer.Option(help="For a repository: a branch, tag or commit.")] = None,
) -> None:
    """Write a model, LoRA, VAE, IP-adapter, textual inversion or safety checker into the models file."""
    path = Path(what).expanduser()
    options = {"prediction_type": prediction_type, "image_encoder": image_encoder, "token": token}
    given = {key: value for key, value in options.items() if value is not None}
    try:
        if path.exists():
            found = recognise(path) if family is None else of_family(recognise(path), family)
            values = _values_of(found, family, given, config)
        else:
            found = _on_hub(what, family)
            values = {"hub": what, "revision": revision, "family": found.family, **given}
        chosen = id or id_from(placed(path).stem if path.exists() else what.split("/")[-1])
        named = {} if found.section == CHECKER else {"aliases": alias or None}
        entry = NewEntry(found.section, chosen, {k: v for k, v in (values | named).items() if v is not None})
        if default and found.section != "models":
            raise NotAdded(f"Only a model can be the default; {path.name} is {found.says}.")
        written = add_entry(storage_settings(), entry, is_default=default)
    except (BadModelFiles, NotAdded, PullFailed) as error:
        raise _stop(f"Nothing was added: {error}") from error
    console.print(f"{chosen} is {found.says}.", markup=False, soft_wrap=True)
    console.print(
        f"It is in {written}: restart the API and the workers, then they know it.", markup=False, soft_wrap=True
    )
    if "hub" in values:
        console.print(f"Fetch it with: inpaintd models pull {chosen}", markup=False, soft_wrap=True)


def _values_of(found: Found, family: Text, given: dict[str, Any], config: Path | None) -> dict[str, Any]:
    """What the entry says. Raises NotAdded where the file does not say it and nobody else does."""
    if found.section == CHECKER:
        return {"folder": found.path}
    if family and found.family and family != found.family:
        raise NotAdded(f"{found.path.name} is {found.says}, not of family {family}.")
    values = dict(found.values) | given
    if found.section == "ip_adapters" and "image_encoder" not in values:
        raise NotAdded(f"{found.path.name} is {found.says}: name the folder of its image encoder with --image-encoder.")
    known = found.family or family
    if known is None:
        raise NotAdded(f"{found.path.name} is {found.says}: say --family sd or --family sdxl.")
    place = {"folder" if found.path.is_dir() else "file": found.path}
    return place | {"family": known, "config": config} | values


def _on_hub(repo_id: str, family: Text) -> Found:
    if repo_id.count("/") != 1 or repo_id.startswith((".", "/", "~")) or repo_id.endswith(".safetensors"):
        raise NotAdded(f"{repo_id} is no file or folder here, and no OWNER/NAME of the hub.")
    family = family or family_on_hub(repo_id)
    return Found("models", Path(repo_id), family, f"a repository of {FAMILY_NAMES.get(family, family)}")


@models.command()
def pull(name: ModelName) -> None:
    """Fetch a model of the hub: safetensors and text files only, into MODELS_DIR."""
    entry = _find(name)
    if not isinstance(entry.source, Hub):
        raise _stop(f"{entry.id} is a local model ({_origin(entry)}): there is nothing to pull.")
    try:
        pull_from_hub(entry.source)
        files = find_files(entry.source)
    except (PullFailed, BadModelFiles) as error:
        raise _stop(f"{entry.id} was not pulled: {error}") from error
    console.print(f"{entry.id} is here: {files.size_bytes / MEBIBYTE:.0f} MiB in {entry.source.path}")
    if files.family != entry.family:
        raise _stop(f'It is of another family than its entry says: write family = "{files.family}" there.')


@models.command()
def check(
    name: AnyName,
    paint: Annotated[bool, typer.Option(help="Load a model as a worker would, and paint with it.")] = True,
) -> None:
    """Say what a model or add-on is, its files' hashes and what is missing; then paint with a model."""
    catalog = _catalog()
    entry = catalog.find(name)
    if entry is None:
        _check_addon(catalog, name)
        return
    if isinstance(entry.source, NoWeights):
        console.print(f"{entry.id} is a program without weights.", markup=False, soft_wrap=True)
        if paint:
            _paint(entry)
        return
    try:
        files = find_files(entry.source)
        says = recognise(entry.source.path).says
    except BadModelFiles as error:
        raise _stop(f"{entry.id} does not work: {error}") from error
    if entry.prediction_type is not None:
        says += f"; by the models file it predicts {entry.prediction_type}"
    console.print(f"{entry.id} is {says}.", markup=False, soft_wrap=True)
    _print_hashes(files.weights)
    console.print(READ_ONCE, soft_wrap=True)
    if files.family != entry.family:
        raise _stop(f"{entry.id} does not work: it is of family {files.family}, the models file says {entry.family}")
    if paint:
        _paint(entry)


def _paint(entry: ModelEntry) -> None:
    # torch takes seconds to import, and the other commands do without it.
    from worker.checking import CheckFailed, check_model  # noqa: PLC0415

    try:
        with console.status(f"Loading {entry.id} and painting with it …"):
            report = check_model(entry, worker_settings())
    except CheckFailed as error:
        raise _stop(f"{entry.id} does not work: {error}") from error
    console.print(
        f"{entry.id} works: painted {report.width}x{report.height} on {report.device} in {report.seconds:.1f} s, "
        f"loading included."
    )


def _check_addon(catalog: ModelCatalog, name: str) -> None:
    checker = catalog.addons.safety_checker
    named = [(section, addon) for section, addon in _addons(catalog.addons) if find_addon((addon,), name) is not None]
    places = [(section, addon.path, addon.family) for section, addon in named]
    if name == CHECKER and checker is not None:
        places.append((CHECKER, checker, ""))
    if not places:
        raise _stop(f"There is no model or add-on {name}. There are: {', '.join(_all_names(catalog))}.")
    for section, path, family in places:
        try:
            found = recognise(path)
        except BadModelFiles as error:
            raise _stop(f"{name} cannot be used: {error}") from error
        console.print(f"{name} is {found.says}.", markup=False, soft_wrap=True)
        _print_hashes(sorted(path.glob("*.safetensors")) if path.is_dir() else [path])
        if found.section != section:
            raise _stop(f"{name} cannot be used: the models file says that it is a {KINDS[section]}")
        if found.family is not None and found.family != family:
            raise _stop(f"{name} cannot be used: the models file says that it is of family {family}")
        console.print(READ_ONCE if section == CHECKER else READ_AGAIN, soft_wrap=True)
    for _section, addon in named:
        if isinstance(addon, IpAdapter) and not (addon.image_encoder / "config.json").is_file():
            raise _stop(f"{name} cannot be used: its image encoder's folder has no config.json")


def _print_hashes(paths: Any) -> None:
    for path in paths:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(HASH_CHUNK_BYTES):
                digest.update(chunk)
        size = path.stat().st_size / MEBIBYTE
        console.print(f"  sha256 {digest.hexdigest()}  {size:8.1f} MiB  {path.parent.name}/{path.name}", soft_wrap=True)


def _catalog() -> ModelCatalog:
    settings = storage_settings()
    file = settings.models_file
    if file is not None and not file.exists():
        Console(stderr=True).print(f"{file} is not there yet: only what is built in.", markup=False, soft_wrap=True)
        settings = settings.model_copy(update={"models_file": None})
    try:
        return load_catalog(settings)
    except BadModelsFile as error:
        raise _stop(str(error)) from error


def _find(name: str) -> ModelEntry:
    catalog = _catalog()
    entry = catalog.find(name)
    if entry is None:
        known = ", ".join(each.id for each in catalog.entries)
        raise _stop(f"There is no model {name}. There are: {known}.")
    return entry


def _addons(addons: Addons) -> Iterator[tuple[str, Addon]]:
    for section in KINDS:
        if section != CHECKER:
            yield from ((section, each) for each in getattr(addons, section))


def _all_names(catalog: ModelCatalog) -> list[str]:
    names = [*(entry.id for entry in catalog.entries), *(addon.id for _, addon in _addons(catalog.addons))]
    return names if catalog.addons.safety_checker is None else [*names, CHECKER]


def _origin(entry: ModelEntry) -> str:
    if not entry.has_weights:
        return "built in, no weights"
    if isinstance(entry.source, Hub):
        return f"hub: {entry.source.repo_id}"
    return "single file" if isinstance(entry.source, SingleFile) else "folder"


def _presence(entry: ModelEntry) -> str:
    if not entry.has_weights:
        return "yes"
    try:
        return f"{find_files(entry.source).size_bytes / MEBIBYTE:.0f} MiB"
    except BadModelFiles as reason:
        return f"no: {reason}"


def _addon_presence(path: Path) -> str:
    try:
        return recognise(path).says
    except BadModelFiles as reason:
        return f"no: {reason}"


def _stop(message: str) -> typer.Exit:
    Console(stderr=True).print(message, style="red", markup=False, highlight=False)
    return typer.Exit(code=1)
