"""What makes a service a replica of a cluster: its secret, its name, and the address that the others are told."""

import secrets
import socket
from pathlib import Path
from typing import Final

from sqlalchemy import make_url

from replay_service.errors import ReplayError
from replay_service.settings import ServiceSettings

_LEAST_CHARACTERS: Final = 32
_OPEN_TO_OTHERS: Final = 0o007
_POSTGRESQL_PORT: Final = 5432
_LOOPBACK: Final = "127.0.0.1"
_ALL_ADDRESSES: Final = frozenset(["0.0.0.0", "::", ""])


class UnusableSecret(ReplayError):
    slug, title = "unusable-secret", "The secret of the cluster cannot be used"


def read_secret(path: Path) -> str:
    """The secret of a cluster.

    Raises:
        UnusableSecret: when it is not there, can be guessed, or can be read by everybody.
    """
    advice = f"make one with: (umask 077; openssl rand -hex 32 > {path}), and give all replicas the same"
    try:
        mode, secret = path.stat().st_mode, path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise UnusableSecret(f"cluster_secret_file {path} cannot be read: {error.strerror}; {advice}") from error
    if mode & _OPEN_TO_OTHERS:
        raise UnusableSecret(f"cluster_secret_file {path} is open to every user of this machine; chmod 600 {path}")
    if len(secret) < _LEAST_CHARACTERS or not (secret.isascii() and secret.isprintable()):
        raise UnusableSecret(
            f"cluster_secret_file {path} holds {len(secret)} characters; at least {_LEAST_CHARACTERS} of printable "
            f"ASCII are needed; {advice}"
        )
    return secret


def replica_name() -> str:
    """A new name for this replica, which says where it runs."""
    return f"{socket.gethostname()[:40]}-{secrets.token_hex(8)}"


def address_of(settings: ServiceSettings, owner_port: int) -> str:
    """Where other replicas reach this one's candidate: what the settings say, or this host's address on its way to the
    database."""
    if settings.owner_address is not None:
        return settings.owner_address
    host = settings.owner_host
    if host in _ALL_ADDRESSES:
        host = _own_address_towards(settings.journal_url)
    return f"[{host}]:{owner_port}" if ":" in host else f"{host}:{owner_port}"


def reachable_host(host: str) -> str:
    """The address of this machine at which something that listens at `host` can be reached from here."""
    if host in _ALL_ADDRESSES:
        return _LOOPBACK
    return f"[{host}]" if ":" in host else host


def _own_address_towards(database_url: str) -> str:
    url = make_url(database_url)
    said = url.host or url.query.get("host") or ""
    host = (said if isinstance(said, str) else said[0]).partition(",")[0]
    if not host or host.startswith("/"):
        return _LOOPBACK
    host, _, port = host.partition(":") if host.count(":") == 1 else (host, "", "")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, int(port or url.port or _POSTGRESQL_PORT), type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # a datagram socket sends nothing for that
            own: str = probe.getsockname()[0]
            return own
    except OSError:
        return socket.gethostname()
