"""How answers leave: what is written in one turn of the event loop together, in order."""

import asyncio

from replay_service.gateway.connection_transport import ConnectionTransport
from tests.gateway.recorded_transport import Recorded

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


async def sent(*pieces: bytes | None) -> list[bytes]:
    """What reaches the system of these pieces; None lets the event loop come round."""
    recorded = Recorded()
    transport = ConnectionTransport(recorded, asyncio.get_running_loop())
    for piece in pieces:
        if piece is None:
            await asyncio.sleep(0)
        else:
            transport.write(piece)
    transport.close()
    return recorded.calls


def test_a_head_goes_out_with_its_body() -> None:
    assert asyncio.run(sent(HEAD, b"one", b"two", None)) == [HEAD + b"onetwo", b"closed"]


def test_a_large_answer_goes_out_part_by_part() -> None:
    large = bytes(300 << 10)
    assert asyncio.run(sent(HEAD, large, b"two", large, b"three")) == [
        HEAD + large,
        b"two" + large,
        b"three",
        b"closed",
    ]


def test_a_head_without_a_body_goes_out_at_the_next_turn_of_the_loop_or_before_the_end() -> None:
    assert asyncio.run(sent(HEAD, None, b"late")) == [HEAD, b"late", b"closed"]
    assert asyncio.run(sent(HEAD)) == [HEAD, b"closed"]


def test_answers_of_one_connection_keep_their_order() -> None:
    assert asyncio.run(sent(HEAD, b"one", HEAD, None, HEAD, b"three")) == [
        HEAD + b"one" + HEAD,
        HEAD + b"three",
        b"closed",
    ]


async def sent_after_the_end() -> list[bytes]:
    recorded = Recorded()
    transport = ConnectionTransport(recorded, asyncio.get_running_loop())
    transport.write(HEAD)
    recorded.abort()
    transport.write(b"one")
    await asyncio.sleep(0)
    return recorded.calls


def test_what_is_written_after_a_connection_was_cut_off_is_dropped() -> None:
    assert asyncio.run(sent_after_the_end()) == []
