"""Messages of Arrow's IPC streams, looked into before Arrow reads them (Arrow's format/Message.fbs).

Whoever sent a message may have written anything in it. Reading beyond its end gives zeros; nothing here fails.
"""

_BUFFER_BYTES = 16
_PREFIX_BYTES = 8


def inflated_bytes(metadata: bytes, body: memoryview) -> int:
    """How many bytes Arrow sets aside for the compressed buffers of a record batch; 0 if it is not compressed, else
    at least 1.

    Each compressed buffer begins with its length before the compression, int64, and -1 means that it is stored as
    it is. Arrow takes a buffer whose length turns out to be another for damaged.
    """
    header = _field(metadata, _number(metadata, 0, 4), 2)
    records = header + _number(metadata, header, 4)
    if not _field(metadata, records, 3):
        return 0
    entry = _field(metadata, records, 2)
    vector = entry + _number(metadata, entry, 4)
    most = len(metadata) // _BUFFER_BYTES
    first = vector + 4
    total = 1
    for place in range(first, first + _BUFFER_BYTES * min(_number(metadata, vector, 4), most), _BUFFER_BYTES):
        offset, length = _number(metadata, place, 8), _number(metadata, place + 8, 8)
        if length:
            prefix = int.from_bytes(body[offset : offset + _PREFIX_BYTES], "little", signed=True)
            total += length if prefix < 0 else prefix
    return total


def _field(metadata: bytes, table: int, index: int) -> int:
    """Where a table's field stands, or 0 if it is left out."""
    vtable = table - int.from_bytes(metadata[table : table + 4], "little", signed=True)
    entry = 4 + 2 * index
    offset = _number(metadata, vtable + entry, 2) if entry < _number(metadata, vtable, 2) else 0
    return table + offset if offset else 0


def _number(metadata: bytes, place: int, width: int) -> int:
    return int.from_bytes(metadata[place : place + width], "little")
