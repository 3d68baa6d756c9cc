from replay_service.wire.protocol import checksum


def test_the_checksum_is_the_usual_crc_32_as_eight_digits_however_the_body_is_cut() -> None:
    """Other programs reckon it too: the check value of CRC-32/ISO-HDLC."""
    assert checksum(b"123456789") == checksum(b"1234", bytearray(b""), memoryview(b"56789")) == "cbf43926"
    assert checksum() == "00000000"
