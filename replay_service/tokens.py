"""Bearer tokens: who may call the service. A TOML file holds their hashes, and is read again when it changes."""

import fcntl
import hashlib
import hmac
import os
import secrets
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from replay_service.errors import ReplayError
from replay_service.names import NAME_PATTERN

TOKEN_PREFIX: Final = "rpl_"
"""By it, a token that was written down where it should not be can be searched for."""

Scope = Literal["read", "train", "admin"]
SCOPES: Final[tuple[Scope, ...]] = ("read", "train", "admin")
"""read: look at everything. train: also what a training job does with runs. admin: also start and stop ingests.
Each includes those before it."""

_HEAD = (
    "# Who may call the service. `replay-service token` writes this file; it holds hashes of tokens, and no token.\n"
)
_Name = Annotated[str, Field(pattern=NAME_PATTERN)]
_Stamp = tuple[int, int, int, int] | None

_log = structlog.get_logger()


class UnusableTokens(ReplayError):
    slug, title = "unusable-tokens", "The tokens cannot be used"


class TokenEntry(BaseModel):
    """One token as it is stored; `runs` names the only runs that it may touch, None means all."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: _Name
    sha256: str = Field(pattern="^[0-9a-f]{64}$", repr=False)
    scope: Scope
    runs: tuple[_Name, ...] | None = Field(None, min_length=1)
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None

    def is_expired(self, now: datetime) -> bool:
        return self.expires_at is not None and self.expires_at <= now


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    token: tuple[TokenEntry, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> "_Content":
        for what in ("name", "sha256"):
            values = [getattr(each, what) for each in self.token]
            if len(set(values)) < len(values):
                raise ValueError(f"two tokens have the same {what}")
        return self


def new_token() -> str:
    """A token that nobody can guess: 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    """The hash that is kept of a token.

    A plain SHA-256 is enough: a slow hash with a salt protects secrets that can be guessed, and among 2 ** 256 tokens
    nobody guesses.
    """
    return hashlib.sha256(token.encode()).hexdigest()


def find(entries: Sequence[TokenEntry], token: str) -> TokenEntry | None:
    """The entry of a token, expired or not.

    Every entry is compared, each in constant time, so that the time it takes tells nothing about any of them.
    """
    digest, found = hash_of(token), None
    for each in entries:
        if hmac.compare_digest(each.sha256, digest):
            found = each
    return found


def read_tokens(path: Path) -> tuple[TokenEntry, ...]:
    """The entries of a tokens file.

    Raises:
        UnusableTokens: when the file is missing or damaged, or an entry is not as it must be.
    """
    try:
        text = path.read_text()
        if not text.strip():  # what a file is for a moment that is written in place
            raise ValueError("it is empty")
        return _Content.model_validate(tomllib.loads(text)).token
    except OSError as error:
        raise UnusableTokens(
            f"the tokens file {path} cannot be read: {error.strerror}; `replay-service token create` makes one"
        ) from error
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_input=False)]
        raise UnusableTokens(f"the tokens file {path} is damaged: {'; '.join(problems)}") from error
    except ValueError as error:
        raise UnusableTokens(f"the tokens file {path} is damaged: {error}") from error


def add_token(path: Path, entry: TokenEntry) -> None:
    """Add an entry to a tokens file, which is made if it is not there.

    Raises:
        UnusableTokens: when the name is taken, or the file cannot be read or written.
    """
    with _changing(path):
        entries = read_tokens(path) if path.exists() else ()
        if any(each.name == entry.name for each in entries):
            raise UnusableTokens(f"there is a token {entry.name!r} already; revoke it, or take another name")
        _write(path, (*entries, entry))


def revoke_token(path: Path, name: str) -> None:
    """Take a token's entry out of a tokens file.

    Raises:
        UnusableTokens: when there is no token of that name, or the file cannot be read or written.
    """
    with _changing(path):
        entries = read_tokens(path)
        kept = tuple(each for each in entries if each.name != name)
        if len(kept) == len(entries):
            raise UnusableTokens(f"there is no token {name!r} in {path}; `replay-service token list` shows them")
        _write(path, kept)


class TokensInForce:
    """The tokens of a file, as they are now. A file that is damaged or gone leaves the last good ones in force.

    Args:
        path: the file.
        may_be_away: whether no token is in force until there is a good file, so that a process that is started again
            lets nobody in.

    Raises:
        UnusableTokens: when there is no good file and it may not be away.
    """

    def __init__(self, path: Path, may_be_away: bool = False) -> None:
        self._path = path
        # Looked at before it is read: a change in between is seen the next time.
        self._stamp = _stamp(path)
        self._entries: tuple[TokenEntry, ...] = ()
        try:
            self._entries = read_tokens(path)
        except UnusableTokens as error:
            if not may_be_away:
                raise
            _log.error("there is no usable tokens file; nobody is let in until there is", problem=error.detail)
        self._warn_of_readers()

    def entries(self) -> tuple[TokenEntry, ...]:
        """All entries; the file is read again when it has changed."""
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp
            self._read_again()
        return self._entries

    def _read_again(self) -> None:
        try:
            self._entries = read_tokens(self._path)
        except UnusableTokens as error:
            _log.warning("the tokens file cannot be used; the last good one stays in force", problem=error.detail)
            return
        _log.info("tokens read again", tokens_file=str(self._path), num_tokens=len(self._entries))
        self._warn_of_readers()

    def _warn_of_readers(self) -> None:
        if self._stamp is not None and self._stamp[-1] & 0o077:
            _log.warning("the tokens file is open to others than its owner; chmod 600", tokens_file=str(self._path))


def _stamp(path: Path) -> _Stamp:
    """A value that changes when the file does; None when it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode


@contextmanager
def _changing(path: Path) -> Iterator[None]:
    """One process at a time changes the files of a folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)
    except OSError as error:
        raise UnusableTokens(f"the tokens file {path} cannot be written: {error.strerror}") from error


def _write(path: Path, entries: Sequence[TokenEntry]) -> None:
    """Replace the file at once, readable by its owner alone, who stays the same when the superuser writes."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            if path.exists():
                status = path.stat()
                os.fchown(file.fileno(), status.st_uid, status.st_gid)
            file.write("\n".join([_HEAD, *map(_as_toml, entries)]))
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink()
            raise


def _as_toml(entry: TokenEntry) -> str:
    """Nothing needs escaping: the entry's fields are names, hexadecimal digits and times."""
    lines = ["[[token]]", f'name = "{entry.name}"', f'sha256 = "{entry.sha256}"', f'scope = "{entry.scope}"']
    if entry.runs is not None:
        lines.append(f"runs = {list(entry.runs)}")
    lines.append(f"created_at = {entry.created_at.isoformat(timespec='seconds')}")
    if entry.expires_at is not None:
        lines.append(f"expires_at = {entry.expires_at.isoformat(timespec='seconds')}")
    return "\n".join(lines) + "\n"
