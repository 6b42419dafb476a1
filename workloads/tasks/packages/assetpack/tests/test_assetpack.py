"""What goes in comes out, and copies pay."""

import random

import pytest
from assetpack import compress, expand, pack, unpack, varint
from assetpack.bundle import order


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 16_383, 16_384, 1 << 40])
def test_varint(number):
    out = bytearray(b"x")
    varint.put(number, out)
    assert varint.get(bytes(out), 1) == (number, len(out))
    assert len(out) - 1 == max(1, -(-number.bit_length() // 7))


def test_negative():
    with pytest.raises(ValueError):
        varint.put(-1, bytearray())


@pytest.mark.parametrize("data", [b"", b"a", b"abc", b"aaaaaaaaaa", b"abcabcabcabcX" * 9])
def test_round_trip(data):
    assert expand(compress(data)) == data


def test_known_bytes():
    assert compress(b"abcdabcdabcd") == bytes([8, *b"abcd", 17, 4])
    assert compress(b"abcabd") == bytes([12, *b"abcabd"])


def test_random_data():
    draw = random.Random(8)
    for size in (10, 500, 5000):
        noise = draw.randbytes(size)
        assert expand(compress(noise)) == noise
        text = bytes(draw.choice(b"abc") for _ in range(size))
        assert expand(compress(text)) == text


def test_effort_pays():
    draw = random.Random(1)
    text = b" ".join(draw.choice([b"alpha", b"beta", b"gamma", b"alphabet"]) for _ in range(900))
    assert len(compress(text, 32)) < len(compress(text, 1)) < len(text)


def test_broken_copy():
    with pytest.raises(ValueError):
        expand(bytes([9, 4]))


def test_order():
    files = {"b.css": b"12", "a.css": b"123", "z.html": b"", "c.css": b"12"}
    assert order(files) == ["b.css", "c.css", "a.css", "z.html"]


def test_bundle():
    files = {"a/b.txt": b"hello " * 50, "ä.css": b"", "c.css": bytes(range(256))}
    archive = pack(files)
    assert unpack(archive) == files
    assert len(archive) < sum(map(len, files.values()))


def test_broken_bundle():
    archive = bytearray(pack({"a": b"some text"}))
    archive[-1] ^= 1
    with pytest.raises(ValueError):
        unpack(bytes(archive))
    with pytest.raises(ValueError):
        unpack(b"nothing")
