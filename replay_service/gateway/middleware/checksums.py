"""Checksums of bodies, end to end: what was damaged on the way is neither taken in nor taken for right."""

from collections.abc import Sequence
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from replay_service.errors import BodyDamaged
from replay_service.gateway.middleware.access import header_in
from replay_service.gateway.middleware.problems import of_error
from replay_service.wire.protocol import CHECKSUM_HEADER, checksum

CHECKSUM_FIELD: Final = CHECKSUM_HEADER.lower().encode()


class Checksums:
    """Refuses a body that is not what its header CHECKSUM_HEADER says, and puts that header on answers.

    Who sends no such header is not asked for it. It stands next to the routes: who may call, and how large a body may
    be, is settled before.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        promised = header_in(scope, CHECKSUM_FIELD)
        if promised is not None:
            messages = await _whole(receive)
            body = b"".join(each.get("body", b"") for each in messages)
            if messages[-1]["type"] == "http.request" and checksum(body) != promised.lower():
                error = BodyDamaged(
                    f"the body of {len(body)} bytes has the checksum {checksum(body)}, which is not what its header "
                    f"{CHECKSUM_HEADER} says: it was damaged on the way; send it again"
                )
                await of_error(error)(scope, receive, send)
                return
            receive = _first(messages, receive)
        await self._app(scope, receive, _with_checksum(send))


async def _whole(receive: Receive) -> list[Message]:
    """The messages of a request's body, up to the last one, or to the caller's leaving."""
    messages = [await receive()]
    while messages[-1].get("more_body", False):
        messages.append(await receive())
    return messages


def _first(messages: Sequence[Message], receive: Receive) -> Receive:
    """Gives these messages, then what else comes."""
    rest = iter(messages)

    async def receive_again() -> Message:
        message = next(rest, None)
        return await receive() if message is None else message

    return receive_again


def _with_checksum(send: Send) -> Send:
    """Sends an answer with its checksum, unless it has one; one that comes in parts goes on as it is."""
    held: list[Message] = []

    async def send_checked(message: Message) -> None:
        if message["type"] == "http.response.start":
            held.append(message)
            return
        if held:
            start = held.pop()
            is_whole = message["type"] == "http.response.body" and not message.get("more_body", False)
            if is_whole and not any(name == CHECKSUM_FIELD for name, _ in start["headers"]):
                start["headers"] = [*start["headers"], (CHECKSUM_FIELD, checksum(message.get("body", b"")).encode())]
            await send(start)
        await send(message)

    return send_checked
