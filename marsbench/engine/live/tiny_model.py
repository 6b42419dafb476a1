"""Writes a tiny random-weight Llama with a byte-level tokenizer, so that any server starts offline.

Nothing is downloaded and no tokenizer library is needed: the files are written by hand. Servers
must be told to make up the weights (vLLM and SGLang: ``--load-format dummy``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marsbench.engine.hardware import Model

VOCAB_SIZE = 1024
FIRST_PLAIN_ID = 256
"""Ids from here on are single characters of their own; below are the 256 bytes."""
EOS_ID = VOCAB_SIZE - 1

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": VOCAB_SIZE,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": EOS_ID,
    "eos_token_id": EOS_ID,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def tiny_layers(asked: int, model: Model | None) -> int:
    """Return the number of layers that the tiny model is started with: what the user asks for, else
    the profile's.
    """
    if asked:
        return asked
    return model.layers if model is not None else int(CONFIG["num_hidden_layers"])


def tiny_misfit(layers: int, model: Model | None) -> str | None:
    """Return one line if the tiny model, with so many layers, is not the model that the profile
    describes, else None.
    """
    if model is None:
        return None
    width, started = model.hidden_size, int(CONFIG["hidden_size"])
    if model.layers == layers and width == started:
        return None
    return (
        f"the profile's model is {model.name} ({model.layers} layers, {width} wide), and the server is "
        f"started with a tiny random one ({layers} layers, {started} wide): name the weights with "
        "engine.params.model, leave engine.params.layers out, or take the profile of what is started"
    )


def write_tiny_model(
    folder: Path, *, max_model_len: int = 32_768, layers: int = CONFIG["num_hidden_layers"]
) -> Path:
    """Write model and tokenizer files into ``folder`` (made if missing); returns the folder.

    Each layer adds to a step what it takes to call its kernels, so that with ``layers`` of them
    the steps of a CPU server last as long as those of a large model on a GPU.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, Any]] = {
        "config.json": {
            **CONFIG,
            "num_hidden_layers": layers,
            "max_position_embeddings": max_model_len,
        },
        "generation_config.json": {"bos_token_id": EOS_ID, "eos_token_id": EOS_ID},
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<eos>",
            "bos_token": "<eos>",
            "model_max_length": max_model_len,
            "clean_up_tokenization_spaces": False,
            "chat_template": (
                "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
                "{% if add_generation_prompt %}[assistant]{% endif %}"
            ),
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


def _tokenizer() -> dict[str, Any]:
    """Return a tokenizer of single bytes, whose other ids decode to CJK characters, one each."""
    vocab = {character: index for index, character in enumerate(_byte_characters())}
    for index in range(FIRST_PLAIN_ID, EOS_ID):
        vocab[chr(0x4E00 + index)] = index
    vocab["<eos>"] = EOS_ID
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": EOS_ID,
                "content": "<eos>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [],
        },
    }


def _byte_characters() -> list[str]:
    """Return the printable character that byte-level BPE (GPT-2) writes for each byte value.

    Printable Latin-1 bytes stand for themselves; the rest follow from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    characters: list[str] = []
    following = 0x100
    for byte in range(256):
        if byte in printable:
            characters.append(chr(byte))
        else:
            characters.append(chr(following))
            following += 1
    return characters
