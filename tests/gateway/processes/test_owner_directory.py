"""A gateway learns from its candidate where the owner is, as soon as a caller needs to know."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass

import pytest

from replay_service.errors import NotOwner
from replay_service.gateway.processes.link import Link
from replay_service.gateway.processes.owner_directory import FollowedOwner, OwnerPlace

NUM_CALLERS = 50


@dataclass
class CandidateServer:
    """Answers where the owner is, after a moment; counts how often it was asked."""

    owner: str
    num_asked: int = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            await reader.readexactly(len(json.dumps({"epoch": None})))
            self.num_asked += 1
            await asyncio.sleep(0.05)
            body = json.dumps({"epoch": 3, "address": self.owner, "is_here": False}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))


@asynccontextmanager
async def followed(candidate: CandidateServer) -> AsyncIterator[FollowedOwner]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError), closing(writer):
            await candidate.answer(reader, writer)

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        directory = FollowedOwner(Link("a secret"), OwnerPlace.at(f"127.0.0.1:{port}"))
        try:
            yield directory
        finally:
            await directory.close()


def test_the_first_callers_wait_for_one_look_instead_of_being_refused() -> None:
    candidate = CandidateServer("replica-b:7000")

    async def story() -> list[OwnerPlace]:
        async with followed(candidate) as directory:
            return await asyncio.gather(*(directory.place() for _ in range(NUM_CALLERS)))

    places = asyncio.run(story())
    assert {(each.name, each.epoch) for each in places} == {("replica-b:7000", 3)}
    assert candidate.num_asked <= 2, "callers share a question"


def test_while_nobody_is_the_owner_callers_share_a_question_and_are_refused() -> None:
    candidate = CandidateServer("")

    async def story() -> list[OwnerPlace | BaseException]:
        async with followed(candidate) as directory:
            return await asyncio.gather(*(directory.place() for _ in range(NUM_CALLERS)), return_exceptions=True)

    refused = asyncio.run(story())
    assert {type(each) for each in refused} == {NotOwner}
    assert candidate.num_asked <= 2


def test_a_candidate_that_does_not_answer_is_no_owner() -> None:
    async def story() -> None:
        directory = FollowedOwner(Link("a secret"), OwnerPlace.at("127.0.0.1:1"))
        with pytest.raises(NotOwner, match="no replica owns the runs"):
            await directory.place()
        await directory.close()

    asyncio.run(story())
