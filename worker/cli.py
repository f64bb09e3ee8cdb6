"""`inpaintd models`: which models there are, fetching them from the hub, trying them out."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from storage.model_catalog import BadModelsFile, Hub, ModelCatalog, ModelEntry, SingleFile, load_catalog
from storage.settings import storage_settings
from worker.model_files import BadModelFiles, find_files
from worker.pulling import PullFailed
from worker.pulling import pull as pull_from_hub
from worker.settings import MEBIBYTE, worker_settings

models = typer.Typer(no_args_is_help=True, help="The models of the models file.")
console = Console()

ModelName = Annotated[str, typer.Argument(help="The model's id or one of its aliases.")]


@models.command("list")
def list_models() -> None:
    """Show every model, its sizes in pixels, and whether its files are here."""
    catalog = _catalog()
    table = Table(Column("id", overflow="fold"), Column("aliases", overflow="fold"), "family", "size", "from", "here")
    for entry in catalog.entries:
        marked = f"{entry.id} (default)" if entry is catalog.default else entry.id
        sizes = f"{entry.native_size} ({entry.min_size}-{entry.max_size})"
        table.add_row(marked, "\n".join(entry.aliases), entry.family, sizes, _origin(entry), _presence(entry))
    console.print(table)


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


@models.command()
def check(name: ModelName) -> None:
    """Load a model as a worker would, and paint a small picture with it."""
    entry = _find(name)
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


def _catalog() -> ModelCatalog:
    try:
        return load_catalog(storage_settings())
    except BadModelsFile as error:
        raise _stop(str(error)) from error


def _find(name: str) -> ModelEntry:
    catalog = _catalog()
    entry = catalog.find(name)
    if entry is None:
        known = ", ".join(each.id for each in catalog.entries)
        raise _stop(f"There is no model {name}. There are: {known}.")
    return entry


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


def _stop(message: str) -> typer.Exit:
    Console(stderr=True).print(message, style="red", markup=False, highlight=False)
    return typer.Exit(code=1)
