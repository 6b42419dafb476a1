"""Where SGLang looks for the architecture of the tiny model that is never run."""

from __future__ import annotations

from sglang.srt.models.llama import LlamaForCausalLM

EntryClass = LlamaForCausalLM
