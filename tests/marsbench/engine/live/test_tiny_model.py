"""The tiny model's files are complete, and a tokenizer library agrees with them."""

from __future__ import annotations

import json

import pytest

from marsbench.engine.live.prompts import DEFAULT_HIGH, DEFAULT_LOW
from marsbench.engine.live.tiny_model import EOS_ID, VOCAB_SIZE, write_tiny_model
from marsbench.engine.profile import load_profile


def test_every_id_has_one_token(tmp_path):
    """Ids 0..1023 each have a token of their own, the first 256 the bytes; prompts stay inside."""
    write_tiny_model(tmp_path / "new", max_model_len=4096)
    vocab = json.loads((tmp_path / "new" / "tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(vocab.values()) == list(range(VOCAB_SIZE))
    assert vocab["A"] == 65
    assert vocab["\u0120"] == 32, "byte-level tokenizers write a blank as this"
    assert DEFAULT_HIGH <= VOCAB_SIZE
    assert DEFAULT_LOW > 255
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert (config["vocab_size"], config["max_position_embeddings"]) == (VOCAB_SIZE, 4096)


@pytest.mark.parametrize("name", ["tiny-cpu", "small-cpu"])
def test_its_shape_is_the_profiles(tmp_path, name):
    """A profile of the made-up model says how many layers to start it with, and the rest is equal."""
    model = load_profile(name).model
    write_tiny_model(tmp_path, layers=model.layers)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_hidden_layers"] == model.layers
    assert config["hidden_size"] == model.hidden_size
    assert config["num_attention_heads"] == model.q_heads
    assert config["num_key_value_heads"] == model.kv_heads
    assert config["head_dim"] == model.head_size
    assert config["vocab_size"] == model.vocab_size


@pytest.mark.vllm
def test_a_real_tokenizer_reads_it(tmp_path):
    """Text goes to its UTF-8 bytes and back; each other id is one character."""
    tokenizers = pytest.importorskip("tokenizers")
    write_tiny_model(tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "def f(x):\n\treturn 'wörld €'"
    ids = tokenizer.encode(text).ids
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert len(tokenizer.decode(list(range(256, EOS_ID)))) == EOS_ID - 256
    assert tokenizer.decode([EOS_ID], skip_special_tokens=False) == "<eos>"
