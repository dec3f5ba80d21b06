#!/usr/bin/env python3
"""Writes a model of random weights that llama.cpp can run: tiny_gguf.py OUT.gguf (needs gguf and numpy).

Its tokens are bytes, so that the tokens of a prompt can be counted by hand. What it says is noise, but of a chosen
kind: one dimension of the embedding is the same for every token, and the output layer reads the wanted frequency of
each token from it. So an answer consists of words, ends by itself after some dozen tokens, and a grammar that the
server lays over it (a forced tool call, a schema) gets to its end too.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from gguf import GGUFWriter, TokenType

WIDTH, INNER, LAYERS, HEADS, CONTEXT = 64, 128, 2, 4, 8192
CONTROL = ["<unk>", "<s>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
UNKNOWN, BEGIN, END = 0, 1, 2
FIRST_BYTE = len(CONTROL)
SPACE = FIRST_BYTE + 256  # as U+2581, which this kind of tokenizer takes a space for
TOKENS = SPACE + 1

# How often the model says what, before noise; all others share 1.
FREQUENCIES = {
    "etaoinshrdlu": 4.0,
    '"': 4.0,  # ends a string
    "}],0123456789": 0.5,
    "{": 1.0,  # begins a call, where one is forced; where one is only allowed, it is a fault that the server gives up on
    "é": 0.7,  # two tokens: characters come in halves, and halves alone
}
SPACES, ENDS = 8.0, 3.0


def wanted() -> Any:
    """The logit of each token."""
    frequency = np.full(TOKENS, 1.0 / TOKENS)
    for letters, each in FREQUENCIES.items():
        for letter in letters.encode():
            frequency[FIRST_BYTE + letter] = each
    frequency[SPACE], frequency[END] = SPACES, ENDS
    frequency[[token for token in range(FIRST_BYTE) if token != END]] = 1e-6
    return np.log(frequency)


def main(path: str) -> None:
    """Write the model."""
    random = np.random.default_rng(11)

    def noise(*shape: int) -> Any:
        return random.normal(0.0, 0.05, shape).astype(np.float32)

    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(TOKENS)
    writer.add_file_type(0)

    writer.add_tokenizer_model("llama")
    types = [TokenType.UNKNOWN, *[TokenType.CONTROL] * (FIRST_BYTE - 1), *[TokenType.BYTE] * 256, TokenType.NORMAL]
    writer.add_token_list([*CONTROL, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"])
    writer.add_token_types(types)
    writer.add_token_scores([-float(token) for token in range(TOKENS)])
    writer.add_unk_token_id(UNKNOWN)
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)

    # Behind the last norm, the first dimension is about sqrt(WIDTH), as it outweighs all others together.
    embedding, output = noise(TOKENS, WIDTH), noise(TOKENS, WIDTH)
    embedding[:, 0] = 4.0
    output[:, 0] = wanted() / np.sqrt(WIDTH)
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output.weight", output)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(WIDTH, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", noise(WIDTH, WIDTH))
        for name, shape in (("gate", (INNER, WIDTH)), ("up", (INNER, WIDTH)), ("down", (WIDTH, INNER))):
            writer.add_tensor(f"blk.{layer}.ffn_{name}.weight", noise(*shape))

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(sys.argv[1])
