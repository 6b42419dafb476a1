"""What the store promises."""

import random

import pytest
from kvlog import Store
from kvlog.record import encode


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.log"


def test_put_get_delete(path):
    store = Store(path)
    store.put(b"a", b"1")
    store.put(b"b", b"2")
    store.put(b"a", b"3")
    assert store.get(b"a") == b"3"
    assert len(store) == 2
    assert store.delete(b"a")
    assert not store.delete(b"a")
    assert store.get(b"a", b"?") == b"?"
    assert b"a" not in store
    store.close()


def test_survives(path):
    store = Store(path)
    for number in range(100):
        store.put(b"k%d" % (number % 10), b"v%d" % number)
    store.delete(b"k3")
    store.close()
    again = Store(path)
    assert len(again) == 9
    assert again.get(b"k7") == b"v97"
    assert again.get(b"k3") is None
    again.close()


def test_keys_in_order(path):
    store = Store(path)
    for name in (b"b1", b"a2", b"b0", b"a1"):
        store.put(name, b"")
    assert list(store.keys()) == [b"a1", b"a2", b"b0", b"b1"]
    assert list(store.keys(b"b")) == [b"b0", b"b1"]
    store.close()


def test_recovers_from_a_cut(path):
    store = Store(path)
    store.put(b"a", b"1")
    store.put(b"b", b"2")
    store.close()
    with path.open("ab") as file:
        file.write(encode(b"c", b"3")[:-1])
    again = Store(path)
    assert list(again.keys()) == [b"a", b"b"]
    again.put(b"d", b"4")
    again.close()
    assert Store(path).get(b"d") == b"4"


def test_compacts(path):
    store = Store(path)
    for number in range(400):
        store.put(b"same", b"x" * 50)
    assert store.compactions >= 1
    assert path.stat().st_size < 10_000
    assert store.get(b"same") == b"x" * 50
    store.close()


def test_small_files_are_left_alone(path):
    store = Store(path)
    for _ in range(20):
        store.put(b"same", b"x")
    assert store.compactions == 0
    store.close()


def test_like_a_dictionary(path):
    draw = random.Random(3)
    model = {}
    store = Store(path)
    for step in range(3000):
        key = b"k%d" % draw.randrange(40)
        if draw.random() < 0.3:
            assert store.delete(key) == (model.pop(key, None) is not None)
        else:
            model[key] = draw.randbytes(draw.randrange(60))
            store.put(key, model[key])
        if step % 500 == 499:
            store.close()
            store = Store(path)
        assert len(store) == len(model)
    assert {key: store.get(key) for key in store.keys()} == model
    store.close()
