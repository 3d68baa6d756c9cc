"""Access: who makes a request, and whether they may. Authentication comes before a request's body is read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import Depends, Path, Request, Security
from fastapi.params import Depends as Dependency
from fastapi.security import HTTPBearer
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from replay_service import tokens
from replay_service.errors import (
    AccessError,
    InvalidToken,
    MissingToken,
    RunForbidden,
    ScopeTooSmall,
    UnknownCorpus,
    UnknownRun,
)
from replay_service.gateway.logs import bind_work
from replay_service.gateway.middleware.cookies import token_in
from replay_service.names import NAME_RULE, is_name
from replay_service.tokens import SCOPES, TokensInForce

OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
"""Paths that answer without a token: they say whether the service is well, and no more."""

LOGIN_PATH: Final = "/login"
ASSETS_PATH: Final = "/assets/"
"""Where a browser logs in, and the files that its page loads: a caller without a token gets them."""

_KEY: Final = "replay.access"

Refusal = Callable[[AccessError, Scope], Response]
"""Makes the answer to somebody who has no good token."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who may do what `scope` includes, with the named runs, or with all (None)."""

    name: str
    scope: tokens.Scope
    runs: frozenset[str] | None = None

    def may_touch(self, run: str) -> bool:
        return self.runs is None or run in self.runs


ANONYMOUS: Final = Caller("anonymous", "admin")
"""Everybody, where no tokens are in force."""


@dataclass(slots=True)
class Access:
    """One request: who makes it, which run or corpus it is about, and whether it may have changed anything."""

    caller: Caller
    run: str | None = None
    corpus: str | None = None
    is_change: bool = True

    def need(self, scope: tokens.Scope) -> None:
        """Raises ScopeTooSmall when the caller may not do what the scope is for."""
        if SCOPES.index(self.caller.scope) < SCOPES.index(scope):
            raise ScopeTooSmall(
                f"token {self.caller.name!r} has the scope {self.caller.scope!r}, and this takes {scope!r}; "
                f"ask for a token made with `replay-service token create NAME --scope {scope}`"
            )

    def touch(self, run: str) -> None:
        """Raises RunForbidden when the caller's token is for other runs, whether there is such a run or not."""
        self.run = run
        if not self.caller.may_touch(run):
            raise RunForbidden(
                f"token {self.caller.name!r} is not for run {run!r}; ask for one made with `--run {run}`, "
                "or use a run that GET /v1/runs lists"
            )


class Authentication:
    """Asks every caller for a token of the application's service, if it has any, and refuses those without."""

    def __init__(self, app: ASGIApp, refusal: Refusal) -> None:
        self._app = app
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope["path"]):
            in_force: TokensInForce | None = scope["app"].state.tokens
            try:
                caller = ANONYMOUS if in_force is None else caller_of(scope, in_force, datetime.now(UTC))
            except AccessError as error:
                await self._refusal(error, scope)(scope, receive, send)
                return
            scope[_KEY] = Access(caller)
        await self._app(scope, receive, send)


def check_again(scope: Scope, run: str) -> None:
    """Raises AccessError when the caller of a request that stays open may not look at its run any more."""
    in_force: TokensInForce | None = scope["app"].state.tokens
    if in_force is not None:
        Access(caller_of(scope, in_force, datetime.now(UTC))).touch(run)


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path == LOGIN_PATH or path.startswith(ASSETS_PATH)


def grant(scope: Scope, caller: Caller) -> None:
    """Say who makes a request that has shown its token in another way than Authentication looks for it."""
    scope[_KEY] = Access(caller)


def changes_nothing(scope: Scope) -> None:
    """Say that a request, whatever its method, has changed nothing, so that nobody need write it down."""
    access = access_in(scope)
    if access is not None:
        access.is_change = False


def header_in(scope: Scope, name: bytes) -> str | None:
    """The first header of a request with this name, which is in lower case."""
    return next((value.decode("latin-1") for each, value in scope["headers"] if each == name), None)


def access_in(scope: Scope) -> Access | None:
    """The access that Authentication has granted to a request."""
    access: Access | None = scope.get(_KEY)
    return access


def is_by_cookie(scope: Scope) -> bool:
    """Whether a browser has put the token into a request by itself."""
    return header_in(scope, b"authorization") is None and token_in(scope) is not None


def caller_of(scope: Scope, in_force: TokensInForce, now: datetime) -> Caller:
    """Who makes a request: the header says it or, where there is none, the cookie.

    Raises:
        MissingToken: when it bears no token.
        InvalidToken: when that is not one in force.
    """
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    if not given:
        token = token_in(scope)
        if token is None:
            raise MissingToken(
                "send the header `Authorization: Bearer <token>`; `replay-service token create` makes tokens"
            )
        return caller_with(token, in_force, now)
    kind, _, token = given[0].decode("latin-1").partition(" ")
    if kind.lower() != "bearer" or len(given) > 1:
        raise InvalidToken("one header `Authorization: Bearer <token>` is wanted")
    return caller_with(token.strip(), in_force, now)


def caller_with(token: str, in_force: TokensInForce, now: datetime) -> Caller:
    """Whose token this is; raises InvalidToken."""
    entry = tokens.find(in_force.entries(), token)
    if entry is None:
        raise InvalidToken("the service does not know the token; it may have been revoked: ask for another one")
    if entry.is_expired(now):
        raise InvalidToken(f"token {entry.name!r} expired at {entry.expires_at}; ask for another one")
    return Caller(entry.name, entry.scope, None if entry.runs is None else frozenset(entry.runs))


_BEARER: Final = HTTPBearer(
    scheme_name="token",
    description="A token that `replay-service token create` made. Nobody is asked for one where none are in force.",
    auto_error=False,
)


async def _access(request: Request) -> Access:
    access = access_in(request.scope)
    assert access is not None, "Authentication stands before every route but those of OPEN_PATHS"
    return access


RequestAccess = Annotated[Access, Depends(_access)]


def _requires(scope: tokens.Scope) -> Sequence[Dependency]:
    async def check(access: RequestAccess) -> None:
        access.need(scope)

    return [Security(_BEARER, scopes=[scope]), Depends(check)]


READ: Final = _requires("read")
TRAIN: Final = _requires("train")
ADMIN: Final = _requires("admin")


async def _run_of_path(
    run: Annotated[str, Path(description=NAME_RULE)], access: RequestAccess, request: Request
) -> str:
    named_run(run, access)
    bind_work(request.scope, run=run)
    return run


def named_run(run: str, access: Access) -> None:
    """Raises UnknownRun when no run can have this name, RunForbidden when the caller may not touch it."""
    if not is_name(run):
        raise UnknownRun(f"there is no run {run!r}; GET /v1/runs lists them, POST /v1/runs creates one")
    access.touch(run)


async def _corpus_of_path(corpus: Annotated[str, Path(description=NAME_RULE)], access: RequestAccess) -> str:
    if not is_name(corpus):
        raise UnknownCorpus(f"there is no corpus {corpus!r}; GET /v1/corpora lists them")
    access.corpus = corpus
    return corpus


RunName = Annotated[str, Depends(_run_of_path)]
CorpusName = Annotated[str, Depends(_corpus_of_path)]
