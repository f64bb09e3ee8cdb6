"""The settings both sides read: where Redis, the pictures and the models are, and how long things live."""

from __future__ import annotations

import os
from functools import cache
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

HOUR_SECONDS = 3600
DAY_SECONDS = 24 * HOUR_SECONDS


class FileSecrets(PydanticBaseSettingsSource):
    """`<NAME>_FILE` names a file that holds the value of `<NAME>`: secrets stay out of the environment."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        path = os.environ.get(f"{field_name.upper()}_FILE")
        return (Path(path).read_text().strip() if path else None), field_name, False

    def __call__(self) -> dict[str, Any]:
        values = {name: self.get_field_value(info, name)[0] for name, info in self.settings_cls.model_fields.items()}
        return {name: value for name, value in values.items() if value is not None}


class EnvironmentSettings(BaseSettings):
    """Fields are read from environment variables of the same name, or from `<NAME>_FILE`."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, FileSecrets(settings_cls)


class StorageSettings(EnvironmentSettings):
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="The Redis that holds the jobs. deploy/up starts one of its own where this is unset.",
    )
    broker_url: SecretStr | None = Field(None, description="The Celery broker; REDIS_URL where unset.")
    redis_timeout_seconds: PositiveFloat = Field(2.0, description="How long one answer of Redis may take.")

    image_dir: Path = Field(Path("var/images"), description="Where pictures lie when S3_BUCKET is unset.")
    s3_endpoint: str | None = Field(None, description="The object store's URL; unset with S3_BUCKET set: AWS's.")
    s3_bucket: str | None = Field(None, description="The bucket for pictures; it must exist. Unset: a folder.")
    s3_region: str = Field("us-east-1", description="The bucket's region.")
    s3_public_endpoint: str | None = Field(
        None, description="Where clients reach the object store; set, pictures are served by signed redirect."
    )
    s3_link_seconds: PositiveInt = Field(HOUR_SECONDS, description="How long such a signed link works.")

    models_file: Path | None = Field(None, description="A models.toml; unset: the built-in model alone.")
    models_dir: Path = Field(Path("var/models"), description="Where pulled weights lie.")

    lease_seconds: PositiveFloat = Field(
        15.0, description="After this long without a sign from its worker, a job goes back into the queue."
    )
    max_attempts: PositiveInt = Field(3, description="Workers a job may lose before it fails.")
    model_patience_seconds: PositiveFloat = Field(
        20.0, description="How long the job whose turn it is may be passed over for jobs whose model is already loaded."
    )

    result_ttl: PositiveFloat = Field(7 * DAY_SECONDS, description="Seconds to keep a result's pictures.")
    temporary_result_ttl: PositiveFloat = Field(DAY_SECONDS, description="The same for `temp` results.")
    record_ttl: PositiveFloat = Field(30 * DAY_SECONDS, description="Seconds to keep a finished job's record.")
    input_ttl: PositiveFloat = Field(DAY_SECONDS, description="Seconds to keep an uploaded picture.")
    delivery_ttl: PositiveFloat = Field(30 * DAY_SECONDS, description="Seconds to keep a webhook's delivery log.")

    allowed_private_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (),
        description="CIDRs, comma separated, that users' URLs may reach although they are not public.",
    )

    log_format: str = Field("console", pattern="^(console|json)$", description="`console` or `json`.")
    log_level: str = Field("INFO", description="The least important lines that are written.")

    @field_validator("allowed_private_networks", mode="before")
    @classmethod
    def _split_networks(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @property
    def celery_broker_url(self) -> str:
        return (self.broker_url or self.redis_url).get_secret_value()


def use_local_installation() -> None:
    """Where no Redis is named, commands speak to the one that deploy/up has started from this folder."""
    local = Path(os.environ.get("STATE_DIR", "var")) / "redis-url"
    if not os.environ.keys() & {"REDIS_URL", "REDIS_URL_FILE"} and local.is_file():
        os.environ["REDIS_URL_FILE"] = str(local)


@cache
def storage_settings() -> StorageSettings:
    return StorageSettings()
