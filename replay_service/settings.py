"""Settings of the service: defaults, then a TOML file, then REPLAY_ environment variables, then flags."""

import ipaddress
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from replay_service.errors import ReplayError

ENV_PREFIX: Final = "REPLAY_"
"""Beginning of the names of the environment variables that hold settings."""


class ServiceLinks(ReplayError):
    slug, title, status = "service-links", "The environment holds no settings", 500


class ServiceSettings(BaseModel):
    """How the service runs. Unknown keys are refused. Possible secrets are in no representation and no error."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    root: Path = Field(
        Path("replay-data"),
        description="Folder of the corpora and of the default journal. A relative path counts from the working "
        "directory.",
    )
    corpora_url: str | None = Field(
        None,
        repr=False,
        examples=["s3://bucket/corpora?region=us-east-1"],
        description="URL of the folder of the corpora in object storage. By default it is the folder `corpora` in "
        "`root`.",
    )
    block_cache_bytes: int = Field(
        1 << 30,
        ge=0,
        description="Memory for blocks that were read from object storage, bytes. The default is 1 GiB.",
    )
    ingest_from: tuple[str, ...] = Field(
        (),
        repr=False,
        examples=[["/data/pretraining", "s3://bucket/web"]],
        description="Folders and URLs from which ingests may be started over HTTP. By default there are none. A source "
        "below a URL takes its user, password and query.",
    )
    database_url: str | None = Field(
        None,
        repr=False,
        examples=["sqlite:////var/lib/replay/journal.sqlite"],
        description="SQLAlchemy URL of the journal. By default it is an SQLite file in `root`.",
    )
    database_timeout_s: float = Field(
        20.0,
        ge=1,
        le=3600,
        description="How long a PostgreSQL server may take for a statement, a lock and an answer, seconds.",
    )
    durability: Literal["full", "relaxed"] = Field(
        "full", description="`full`: answers survive a loss of power. `relaxed`: they survive the end of the process."
    )
    snapshot_every: int = Field(
        1000,
        ge=1,
        description="Events between two snapshots of a run's state. A restart folds about so many events at most.",
    )
    seal_after_s: float = Field(
        600.0,
        gt=0,
        description="How long a fenced run waits for reports before it plans without them, seconds. The time counts "
        "from the first request that was refused for them.",
    )
    stale_after_s: float = Field(
        600.0,
        gt=0,
        description="After how long without a plan or a report a run counts as stale, seconds. No plan depends on it.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8400, ge=0, le=65535, description="Port to listen on. 0 takes a free port.")
    gateways: int = Field(
        1,
        ge=1,
        le=256,
        description="Processes that serve batches on the port. With more than one, another process owns the runs and "
        "answers everything else. Take as many as there are cores to spare.",
    )
    cluster: bool = Field(
        False,
        description="Serve as one of several replicas on several hosts. One of them owns the runs at a time, and all "
        "find it in the database. Needs a PostgreSQL `database_url` and `cluster_secret_file`.",
    )
    cluster_secret_file: Path | None = Field(
        None,
        examples=["/etc/replay/cluster-secret"],
        description="File of a secret of at least 32 characters, the same for all replicas of a cluster. By it they "
        "know each other.",
    )
    owner_host: str = Field("0.0.0.0", description="In a cluster: address to listen on for the other replicas.")
    owner_port: int = Field(
        8401,
        ge=0,
        le=65535,
        description="In a cluster: port to listen on for the other replicas. Nobody else should reach it. 0 takes a "
        "free port.",
    )
    owner_address: str | None = Field(
        None,
        examples=["10.0.0.7:8401"],
        description="In a cluster: where the other replicas reach this one, host:port. By default it is this host's "
        "address on its way to the database, and `owner_port`.",
    )
    lease_s: float = Field(
        15.0,
        ge=3,
        le=600,
        description="In a cluster: how long a replica that is lost counts as the owner of the runs, seconds.",
    )
    allow_unauthenticated: bool = Field(
        False,
        description="Listen beyond loopback although there are no tokens. Put the service behind a proxy that asks "
        "callers who they are.",
    )
    tokens_file: Path | None = Field(
        None,
        examples=["/etc/replay/tokens.toml"],
        description="File of the tokens that callers must have. `replay-service token` writes it, and the service "
        "reads it again when it changes. By default it is `tokens.toml` in `root`, and callers need no token if "
        "that file is not there at the start.",
    )
    tls_certificate: Path | None = Field(
        None,
        examples=["/etc/replay/certificate.pem"],
        description="PEM file of the server's certificate and those that lead to its authority, for HTTPS. It is read "
        "at the start. `tls_key` goes with it.",
    )
    tls_key: Path | None = Field(
        None, examples=["/etc/replay/key.pem"], description="PEM file of the certificate's private key."
    )
    trusted_proxies: tuple[str, ...] = Field(
        (),
        examples=[["10.0.0.0/8"]],
        description="Addresses and networks of proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed. "
        "By default there are none.",
    )
    allowed_hosts: tuple[str, ...] = Field(
        (),
        examples=[["replay.example.org", "*.internal"]],
        description="Names in the `Host` header that are answered. By default they are the names of loopback when the "
        "service listens there, and all names otherwise. Where names are set, addresses are answered too. `/healthz` "
        "and `/readyz` answer under any name.",
    )
    max_connections: int = Field(
        4096, ge=1, description="Most connections at a time. Requests on any more get 503, except for health."
    )
    max_concurrent_requests: int = Field(
        256, ge=1, description="Most requests that are answered, or wait for it, at a time. Any more get 503."
    )
    max_watchers: int = Field(
        64,
        ge=0,
        description="Most requests that follow the events of a run (server-sent events) at a time. They do not count "
        "in `max_concurrent_requests`. Any more get 503.",
    )
    io_timeout_s: float = Field(
        60.0,
        gt=0,
        description="How long a request may take to arrive, and a response to be read, before the connection is "
        "closed, seconds.",
    )
    max_body_bytes: int = Field(
        16 << 20, ge=1024, description="Largest request body accepted, bytes. The default is 16 MiB."
    )
    max_response_bytes: int = Field(
        64 << 20,
        ge=1 << 20,
        description="Most bytes that the samples of one batch may have. The default is 64 MiB. Clients then ask for "
        "fewer steps.",
    )
    max_steps_per_request: int = Field(1024, ge=1, description="Most steps that one batch request may ask for.")
    max_steps_ahead: int = Field(
        4096, ge=1, description="Most steps beyond its last planned step that a run can be asked to plan."
    )
    shutdown_delay_s: float = Field(
        1.0,
        ge=0,
        description="How long requests are still taken after SIGTERM, seconds. `/readyz` already says that the service "
        "stops. Take as long as a load balancer needs to notice.",
    )
    drain_timeout_s: int = Field(30, ge=1, description="How long to finish open requests after that, seconds.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level logged. At `debug`, every request is logged."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto",
        description="Form of the log on standard error. `json`: one object a line. `console`: lines for people. "
        "`auto`: `console` at a terminal, `json` elsewhere.",
    )
    trace_to: str | None = Field(
        None,
        repr=False,
        examples=["http://127.0.0.1:4318/v1/traces"],
        description="URL of an OpenTelemetry collector that takes traces over HTTP (OTLP). By default nothing is "
        "traced. Needs the extra `tracing`.",
    )

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

    @field_validator("owner_address")
    @classmethod
    def _is_host_and_port(cls, address: str | None) -> str | None:
        if address is not None:
            host, _, port = address.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise ValueError("is no host:port, such as 10.0.0.7:8401")
        return address

    @model_validator(mode="after")
    def _has_what_a_cluster_needs(self) -> "ServiceSettings":
        if self.cluster and not (self.database_url or "").startswith("postgresql"):
            raise ValueError(
                "cluster needs a database that all replicas reach; set database_url to one of PostgreSQL, such as "
                "postgresql+psycopg://user@host/replay"
            )
        if self.cluster and self.cluster_secret_file is None:
            raise ValueError(
                "cluster needs cluster_secret_file, by which the replicas know each other; make one with: "
                "(umask 077; openssl rand -hex 32 > cluster-secret)"
            )
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
        """Whether callers need a token: where a file of tokens is named, or is at its default place."""
        return self.tokens_file is not None or self.tokens_path.exists()

    @property
    def corpora(self) -> Path:
        """The folder that corpora are made in."""
        return self.root / "corpora"

    @property
    def ingest_folder(self) -> Path:
        """The folder that ingests of commands work in: that of the corpora, unless they go to object storage."""
        return self.corpora if self.corpora_url is None else self.root / "ingests"

    @property
    def corpora_place(self) -> str | Path:
        """The path or URL of the folder of the corpora that are served."""
        return self.corpora if self.corpora_url is None else self.corpora_url

    @property
    def journal_url(self) -> str:
        return self.database_url or f"sqlite:///{self.root / 'journal.sqlite'}"


def is_loopback(host: str) -> bool:
    """Whether a name or an address can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load_settings(config_file: Path | None = None, **flags: Any) -> ServiceSettings:
    """The settings in force.

    Args:
        config_file: TOML file of settings; None for none.
        flags: settings of the command line; those that are None were not given.

    Raises:
        pydantic.ValidationError: names every key that is unknown or out of range.
        ValueError: when the configuration file is no TOML.
        ServiceLinks: when Kubernetes has set variables that look like settings.
        FileNotFoundError: when the configuration file is not there.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    _check_no_service_links(os.environ)
    if config_file is not None and not config_file.is_file():
        raise FileNotFoundError(f"there is no configuration file {config_file}")
    try:
        return ServiceSettings(**dict(_sources(config_file)(**given)))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{config_file} is no TOML file: {error}") from error


def _check_no_service_links(environment: Mapping[str, str]) -> None:
    """Refuse variables such as REPLAY_PORT=tcp://10.0.0.1:8400, which Kubernetes sets beside a Service called `replay`.

    Raises:
        ServiceLinks: when there is such a variable; it says what to do.
    """
    linked = [name for name, value in environment.items() if name.startswith(ENV_PREFIX) and value.startswith("tcp://")]
    if linked:
        raise ServiceLinks(
            f"{linked[0]} is {environment[linked[0]]}, which Kubernetes has set for a Service whose name begins with "
            "`replay`; say `enableServiceLinks: false` in the pod's spec, or give the Service another name"
        )


def _sources(config_file: Path | None) -> Callable[..., Iterable[tuple[str, Any]]]:
    """The settings as a model that also reads the environment and a file."""
    # The settings are described without this library, which is in the extra `server`.
    from pydantic_settings import BaseSettings, SettingsConfigDict, TomlConfigSettingsSource

    class FromSources(ServiceSettings, BaseSettings):
        model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, toml_file=config_file)

        @classmethod
        def settings_customise_sources(  # type: ignore[override]
            cls, settings_cls: Any, init_settings: Any, env_settings: Any, **_others: Any
        ) -> tuple[Any, ...]:
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    return FromSources
