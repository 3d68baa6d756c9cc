"""Settings of the service: defaults, then a TOML file, then REPLAY_ environment variables, then flags."""

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError


class ServiceSettings(BaseSettings):
    """How the service runs. Unknown keys are refused."""

    model_config = SettingsConfigDict(env_prefix="REPLAY_", extra="forbid", frozen=True)

    root: Path = Field(Path("replay-data"), description="Folder of the corpora and of the default journal.")
    corpora_url: str | None = Field(
        None,
        description="URL of the folder of the corpora in object storage, such as s3://bucket/corpora?region=us-east-1; "
        "by default the folder `corpora` in `root`.",
    )
    block_cache_bytes: int = Field(
        1 << 30, ge=0, description="The most that is kept in memory of what was read from object storage."
    )
    ingest_from: tuple[str, ...] = Field(
        (),
        description="Folders and URLs from which ingests may be started over HTTP, such as /data/pretraining or "
        "s3://bucket/web; nowhere by default.",
    )
    database_url: str | None = Field(
        None, description="SQLAlchemy URL of the journal; by default an SQLite file in `root`."
    )
    durability: Literal["full", "relaxed"] = Field(
        "full", description="full: answers survive a loss of power; relaxed: they survive the process."
    )
    snapshot_every: int = Field(1000, ge=1, description="Events between two snapshots of a run's state.")
    seal_after_s: float = Field(
        600.0, gt=0, description="How long a fenced run waits for reports before it plans without them."
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8400, ge=0, le=65535, description="Port to listen on.")
    allow_unauthenticated: bool = Field(
        False, description="Listen beyond loopback although callers are not asked who they are."
    )
    max_body_bytes: int = Field(16 << 20, ge=1024, description="Largest request body accepted.")
    max_steps_per_request: int = Field(1024, ge=1, description="Most steps one batch request may ask for.")
    max_steps_ahead: int = Field(
        4096, ge=1, description="How far beyond its last planned step a run can be asked to plan."
    )
    drain_timeout_s: int = Field(30, ge=1, description="How long to finish open requests after SIGTERM.")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Least severe level logged.")

    @field_validator("database_url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        if url is not None:
            try:
                make_url(url)
            except ArgumentError:
                raise ValueError("is no SQLAlchemy URL, such as sqlite:////var/lib/replay/journal.sqlite") from None
        return url

    @property
    def corpora(self) -> Path:
        """The folder that corpora are made in."""
        return self.root / "corpora"

    @property
    def corpora_place(self) -> str | Path:
        """The path or URL of the folder of the corpora that are served."""
        return self.corpora if self.corpora_url is None else self.corpora_url

    @property
    def journal_url(self) -> str:
        return self.database_url or f"sqlite:///{self.root / 'journal.sqlite'}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(config_file: Path | None = None, **flags: Any) -> ServiceSettings:
    """The settings in force; flags that are None were not given.

    Raises:
        pydantic.ValidationError: names every key that is unknown or out of range.
        ValueError: when the configuration file is no TOML.
        FileNotFoundError: when the configuration file is not there.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if config_file is None:
        return ServiceSettings(**given)
    if not config_file.is_file():
        raise FileNotFoundError(f"there is no configuration file {config_file}")

    class FromFile(ServiceSettings):
        model_config = SettingsConfigDict(toml_file=config_file)

    try:
        return FromFile(**given)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{config_file} is no TOML file: {error}") from error
