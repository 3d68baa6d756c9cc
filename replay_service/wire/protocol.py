"""The media type, the version and the checksum of bodies."""

from typing import Final

from zlib_ng.zlib_ng import crc32

ARROW_STREAM: Final = "application/vnd.apache.arrow.stream"

WIRE_VERSION: Final = 1
"""Raised when a release could not read what another one sends; `tests/wire/golden` holds a batch of each."""

CHECKSUM_HEADER: Final = "Replay-Checksum"
"""Header of a request or an answer: the `checksum` of its body."""


def checksum(*parts: bytes | bytearray | memoryview) -> str:
    """The CRC-32 of a body, of which these are the parts, as eight hexadecimal digits, as it stands in CHECKSUM_HEADER.

    It is there for accidents, not for attacks: TCP's checksum of 16 bits, and proxies that put together anew what they
    pass on, let damage through that neither HTTP nor Arrow would notice in the middle of the token ids.
    """
    value = 0
    for each in parts:
        value = crc32(each, value)
    return f"{value:08x}"
