"""Events as rows of the journal, of this release and of earlier ones."""

import numpy as np
import pytest

from replay_service.ledger.event_rows import columns_of, reported_rows
from replay_service.sampling.events import REPORTED_ROW, Reported
from replay_service.wire.losses import GAINS_NOT_TOLD

EARLIER = np.dtype([(name, REPORTED_ROW[name]) for name in (REPORTED_ROW.names or ())[:-1]])


@pytest.mark.parametrize("num", [0, 1, 8, 9, 63, 64, 72])
def test_reports_are_read_back_and_those_of_earlier_releases_tell_of_no_gains(num: int) -> None:
    random = np.random.default_rng(num)
    rows = np.frombuffer(random.bytes(num * REPORTED_ROW.itemsize), dtype=REPORTED_ROW)
    payload = columns_of(Reported(3, 1, rows))["payload"]
    assert isinstance(payload, bytes)
    assert reported_rows(payload).tobytes() == rows.tobytes()
    for first_byte in (payload[:1], b"\0", b"\xff"):
        check_earlier((first_byte + random.bytes(num * EARLIER.itemsize))[: num * EARLIER.itemsize])


def check_earlier(payload: bytes) -> None:
    earlier, read = np.frombuffer(payload, dtype=EARLIER), reported_rows(payload)
    assert len(read) == len(earlier)
    assert (read["num_gains"] == GAINS_NOT_TOLD).all()
    for name in EARLIER.names or ():
        assert read[name].tobytes() == earlier[name].tobytes()
