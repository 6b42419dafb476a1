"""Prompts as chains of salted block hashes: how much of one is a prefix of another, without text."""

from __future__ import annotations

import hashlib

from marsbench.gateway.messages.prompt import Prompt

TEXT_BLOCK_BYTES = 64
"""About 16 tokens of text, the block of vLLM's KV cache."""
TOKEN_BLOCK_BYTES = 16 * 8
"""16 token ids of 8 bytes."""
DIGEST_BYTES = 8


class BlockChain:
    """Hashes of all complete blocks of a prompt, each over everything before it."""

    def __init__(self, salt: bytes, block_bytes: int) -> None:
        self.block_bytes = block_bytes
        self.digests = bytearray()
        self._salt = salt
        self._rest = b""

    def __len__(self) -> int:
        return len(self.digests) // DIGEST_BYTES

    def extend(self, data: bytes) -> None:
        """Take in what follows."""
        data = self._rest + data
        size = self.block_bytes
        last = bytes(self.digests[-DIGEST_BYTES:])
        end = len(data) - len(data) % size
        for start in range(0, end, size):
            block = last + data[start : start + size]
            last = hashlib.blake2b(block, digest_size=DIGEST_BYTES, key=self._salt).digest()
            self.digests += last
        self._rest = data[end:]

    def common_blocks(self, other: BlockChain) -> int:
        """Count the leading blocks that both have. Chains agree up to a point and never again after
        it.
        """
        low, high = 0, min(len(self), len(other))
        while low < high:
            middle = (low + high + 1) // 2
            at = slice((middle - 1) * DIGEST_BYTES, middle * DIGEST_BYTES)
            if self.digests[at] == other.digests[at]:
                low = middle
            else:
                high = middle - 1
        return low


def chain_of(prompt: Prompt, salt: bytes) -> BlockChain:
    """Return the chain of a whole prompt: its head, then its pieces."""
    size = TEXT_BLOCK_BYTES if prompt.tokens is None else TOKEN_BLOCK_BYTES
    chain = BlockChain(salt, size)
    text = prompt.read()
    chain.extend(text.head + b"".join(text.pieces))
    return chain


def head_id(prompt: Prompt, salt: bytes) -> str:
    """Return a name of a shared head that says nothing about its text."""
    return hashlib.blake2b(prompt.read().head, digest_size=DIGEST_BYTES, key=salt).hexdigest()
