"""`inpaintd keys …`: who may call. The operator's side of api/keys.py."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from api.keys import DEFAULT_GRACE_SECONDS, ApiKey, KeyScope, KeyStore, UnknownKey
from storage.errors import StorageUnavailable
from storage.job_store import open_redis
from storage.settings import storage_settings

KEY_ID_CHARS = 12

keys = typer.Typer(no_args_is_help=True, help="Create, list, revoke and rotate API keys.")

KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `list` shows it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
KeyFile = Annotated[
    Path | None,
    typer.Option("--file", dir_okay=False, help="Write the key there (mode 0600) instead of printing it."),
]


@keys.command()
def create(
    name: Annotated[str, typer.Option(help="For whom or what the key is.")] = "",
    scope: Annotated[KeyScope, typer.Option(help="An admin sees every key's jobs.")] = KeyScope.USER,
    days: Annotated[float | None, typer.Option(min=0, help="Days until the key ends; never if unset.")] = None,
    file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown this once; only its hash is kept."""
    with _explained(), _new_file(file) as write:
        created_at = datetime.now(tz=UTC).timestamp()
        expires_at = None if days is None else created_at + days * 24 * 3600
        api_key, plaintext = _store().create(name=name, scope=scope, expires_at=expires_at)
        write(plaintext)
    _show_once(api_key, plaintext, file=file, as_json=as_json)


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """Show all keys, revoked ones too."""
    with _explained():
        api_keys = _store().list()
    if as_json:
        typer.echo(json.dumps([_facts(api_key) for api_key in api_keys]))
        return
    table = Table(Column("ID", no_wrap=True, min_width=KEY_ID_CHARS), "Name", "Scope", "Created", "Rotated", "State")
    now = datetime.now(tz=UTC).timestamp()
    for api_key in api_keys:
        table.add_row(
            api_key.key_id,
            escape(api_key.name),
            api_key.scope.value,
            _date(api_key.created_at),
            _date(api_key.rotated_at),
            _state(api_key, now),
        )
    Console().print(table)


@keys.command()
def revoke(key_id: KeyId, as_json: AsJson = False) -> None:
    """End a key, within the few seconds for which the API remembers it (AUTH_CACHE_SECONDS)."""
    with _explained():
        api_key = _store().revoke(key_id)
    typer.echo(json.dumps(_facts(api_key)) if as_json else f"Revoked {key_id}.")


@keys.command()
def rotate(
    key_id: KeyId,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds for which the key so far stays good.")
    ] = DEFAULT_GRACE_SECONDS,
    file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Give a key a new secret. Its jobs and its webhook secret stay."""
    with _explained(), _new_file(file) as write:
        store = _store()
        plaintext = store.rotate(key_id, grace)
        write(plaintext)
        api_key = store.get(key_id)
    if api_key is not None:
        _show_once(api_key, plaintext, file=file, as_json=as_json)


@keys.command("webhook-secret")
def webhook_secret(key_id: KeyId) -> None:
    """Show the secret that this key's webhooks are signed with."""
    with _explained():
        api_key = _store().get(key_id)
        if api_key is None:
            raise UnknownKey(key_id)
    typer.echo(api_key.webhook_secret)


def _store() -> KeyStore:
    return KeyStore(open_redis(storage_settings()))


@contextmanager
def _explained() -> Iterator[None]:
    problem = None
    try:
        yield
    except UnknownKey as error:
        problem = f"There is no live key with the id {error}."
    except StorageUnavailable as error:
        problem = (
            f"Redis does not answer: {error}\n"
            "It is looked for at REDIS_URL, or where deploy/up keeps its state: was it started with another STATE_DIR?"
        )
    except OSError as error:
        problem = f"The file cannot be written: {error}"
    if problem is not None:
        typer.echo(problem, err=True)
        raise typer.Exit(1)


@contextmanager
def _new_file(path: Path | None) -> Iterator[Callable[[str], None]]:
    """Makes sure that the key can be written before there is one to lose.

    The file takes its name at the end and whole, and only its owner could ever read it.
    """
    if path is None:
        yield lambda plaintext: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as opened:
            yield lambda plaintext: print(plaintext, file=opened)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _show_once(api_key: ApiKey, plaintext: str, *, file: Path | None, as_json: bool) -> None:
    shown = {"key": plaintext} if file is None else {"file": str(file)}
    shown |= {"webhook_secret": api_key.webhook_secret}
    if as_json:
        typer.echo(json.dumps({**_facts(api_key), **shown}))
        return
    typer.echo(f"id              {api_key.key_id}")
    for name, value in shown.items():
        typer.echo(f"{name:<15} {value}")
    if file is None:
        typer.echo("The key is not stored and cannot be shown again.", err=True)


def _facts(api_key: ApiKey) -> dict[str, Any]:
    return {
        "id": api_key.key_id,
        "name": api_key.name,
        "scope": api_key.scope.value,
        "created_at": api_key.created_at,
        "rotated_at": api_key.rotated_at,
        "expires_at": api_key.expires_at,
        "revoked_at": api_key.revoked_at,
    }


def _state(api_key: ApiKey, now: float) -> str:
    if api_key.revoked_at is not None:
        return f"revoked {_date(api_key.revoked_at)}"
    if not api_key.is_live(at=now):
        return f"expired {_date(api_key.expires_at)}"
    return "live" if api_key.expires_at is None else f"live until {_date(api_key.expires_at)}"


def _date(moment: float | None) -> str:
    return "" if moment is None else datetime.fromtimestamp(moment, tz=UTC).strftime("%Y-%m-%d %H:%M")
