"""`inpaintd fal …`: the keys that sign fal's webhooks. The operator's side of signatures.py."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from api.dialects.fal import signatures
from api.settings import ApiSettings
from storage.errors import StorageUnavailable
from storage.job_store import open_redis
from storage.settings import storage_settings

fal = typer.Typer(no_args_is_help=True, help="Show and rotate the keys that sign fal's webhooks.")


@fal.command("signing-keys")
def signing_keys() -> None:
    """List the published keys, and which of them signs."""
    try:
        signer = signatures.open_signing_keys(open_redis(storage_settings()), ApiSettings().fal_webhook_key)
        now = datetime.now(tz=UTC).timestamp()
        signing = signer.current(now=now).key_id
        published = signer.jwks(now=now)["keys"]
    except StorageUnavailable as error:
        raise _explained(error) from error
    for key in published:
        typer.echo(f"{key['kid']}  {'signs' if key['kid'] == signing else 'published'}")


@fal.command("rotate-signing-key")
def rotate_signing_key(
    after: Annotated[
        float, typer.Option(min=0, help="Seconds until it signs; receivers keep the published keys for a day.")
    ] = signatures.PUBLISHED_BEFORE_SECONDS,
) -> None:
    """Make a new key: published at once, in use after a while."""
    if ApiSettings().fal_webhook_key is not None:
        typer.echo("FAL_WEBHOOK_KEY is set: rotate by putting a new key before the others there.", err=True)
        raise typer.Exit(1)
    try:
        added = signatures.rotate(open_redis(storage_settings()), after_seconds=after)
    except StorageUnavailable as error:
        raise _explained(error) from error
    typer.echo(f"{added.key_id}  signs from {datetime.fromtimestamp(added.signs_from, tz=UTC):%Y-%m-%d %H:%M} UTC on")


def _explained(error: StorageUnavailable) -> typer.Exit:
    typer.echo(f"Redis does not answer (REDIS_URL): {error}", err=True)
    return typer.Exit(1)
