"""What records promise."""

import pytest
from kvlog.record import CorruptError, decode, encode


@pytest.mark.parametrize("value", [b"", b"v", b"x" * 5000, None])
def test_round_trip(value):
    record = encode(b"key", value)
    assert decode(b"zz" + record + b"more", 2) == (b"key", value, len(record) + 2)


def test_cut_off_anywhere():
    record = encode(b"key", b"value")
    for size in range(len(record)):
        with pytest.raises(CorruptError):
            decode(record[:size], 0)


def test_flipped_bits():
    record = encode(b"key", b"value")
    for index in range(len(record)):
        broken = bytearray(record)
        broken[index] ^= 0x10
        with pytest.raises(CorruptError):
            decode(bytes(broken), 0)
