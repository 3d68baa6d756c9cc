"""Settings of the service: defaults, then a TOML file, then REPLAY_ environment variables, then flags."""

import ipaddress
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)


class ServiceSettings(BaseSettings):
    """How the service runs. Unknown keys are refused. What may hold secrets is in no representation and no error."""

    model_config = SettingsConfigDict(env_prefix="REPLAY_", extra="forbid", frozen=True, hide_input_in_errors=True)

    root: Path = Field(Path("replay-data"), description="Folder of the corpora and of the default journal.")
    corpora_url: str | None = Field(
        None,
        repr=False,
        description="URL of the folder of the corpora in object storage, such as s3://bucket/corpora?region=us-east-1; "
        "by default the folder `corpora` in `root`.",
    )
    block_cache_bytes: int = Field(
        1 << 30, ge=0, description="The most that is kept in memory of what was read from object storage."
    )
    ingest_from: tuple[str, ...] = Field(
        (),
        repr=False,
        description="Folders and URLs from which ingests may be started over HTTP, such as /data/pretraining or "
        "s3://bucket/web; nowhere by default. A source below a URL takes its user, password and query.",
    )
    database_url: str | None = Field(
        None, repr=False, description="SQLAlchemy URL of the journal; by default an SQLite file in `root`."
    )
    database_timeout_s: float = Field(
        20.0, ge=1, le=3600, description="How long a PostgreSQL server may take for a statement, a lock and an answer."
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
    gateways: int = Field(
        1,
        ge=1,
        le=256,
        description="Processes that serve batches on the port; with more than one, another owns the runs.",
    )
    allow_unauthenticated: bool = Field(
        False, description="Listen beyond loopback although there are no tokens to ask callers for."
    )
    tokens_file: Path | None = Field(
        None,
        description="File of the tokens that callers must have; by default `tokens.toml` in `root`, if it is there.",
    )
    tls_certificate: Path | None = Field(
        None,
        description="PEM file of the server's certificate and those that lead to its authority; read at the start.",
    )
    tls_key: Path | None = Field(None, description="PEM file of the certificate's private key.")
    trusted_proxies: tuple[str, ...] = Field(
        (),
        description="Addresses and networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed, such "
        "as 10.0.0.0/8; by default nobody says who a caller is.",
    )
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="Names in the Host header that are answered, such as replay.example.org or *.example.org; by "
        "default those of loopback when listening there, else all.",
    )
    max_connections: int = Field(
        4096, ge=1, description="Most connections at a time; on any more, requests are told to come again."
    )
    max_concurrent_requests: int = Field(
        256,
        ge=1,
        description="Most requests that are answered or wait for it; any more are told to come again.",
    )
    io_timeout_s: float = Field(
        60.0, gt=0, description="How long a request may take to come, and an answer to be taken, before it is cut off."
    )
    max_body_bytes: int = Field(16 << 20, ge=1024, description="Largest request body accepted.")
    max_response_bytes: int = Field(
        64 << 20,
        ge=1 << 20,
        description="Most bytes that the samples of one batch may have; a client asks for fewer steps then.",
    )
    max_steps_per_request: int = Field(1024, ge=1, description="Most steps one batch request may ask for.")
    max_steps_ahead: int = Field(
        4096, ge=1, description="How far beyond its last planned step a run can be asked to plan."
    )
    shutdown_delay_s: float = Field(
        1.0,
        ge=0,
        description="How long requests are still taken after SIGTERM, while /readyz says that the service stops; as "
        "long as a load balancer takes to notice.",
    )
    drain_timeout_s: int = Field(30, ge=1, description="How long to finish open requests after that.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level logged.")

    @field_validator("database_url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        if url is not None:
            from sqlalchemy import make_url  # here, since commands that need no database start sooner without it
            from sqlalchemy.exc import ArgumentError

            try:
                make_url(url)
            except ArgumentError:
                raise ValueError("is no SQLAlchemy URL, such as sqlite:////var/lib/replay/journal.sqlite") from None
        return url

    @model_validator(mode="after")
    def _has_certificate_and_key(self) -> "ServiceSettings":
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together; set both, or neither")
        return self

    @property
    def listens_on_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return is_loopback(self.host)

    @property
    def tokens_path(self) -> Path:
        """Where the tokens are kept."""
        return self.root / "tokens.toml" if self.tokens_file is None else self.tokens_file

    @property
    def asks_for_tokens(self) -> bool:
        """Whether callers are asked who they are: a file that was named must be there."""
        return self.tokens_file is not None or self.tokens_path.exists()

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


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own, and only reached from it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
