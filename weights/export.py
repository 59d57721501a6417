"""Writes the trained model as GGUF: F16 as the reference, Q8_0 as the one to use.

    PYTHONPATH=. python weights/export.py --run DIR [--out weights]

The tokenizer, its control pieces and the chat template go into the file; norms stay F32. The checkpoint's q and k
already turn neighbouring pairs, as GGUF's `llama` does: nothing is permuted.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from net import Shape

from tinyslm.formats import BY_NAME
from tinyslm.gguf import TensorData, write

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # tokenizer.ggml.token_type
FILE_TYPES = {"F16": 1, "Q8_0": 7}  # general.file_type

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def vocabulary(sp: sentencepiece.SentencePieceProcessor) -> dict[str, object]:
    size = sp.get_piece_size()
    kinds = [
        UNKNOWN if sp.is_unknown(i) else CONTROL if sp.is_control(i) else BYTE if sp.is_byte(i) else NORMAL
        for i in range(size)
    ]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [sp.id_to_piece(i) for i in range(size)],
        "tokenizer.ggml.scores": np.array([sp.get_score(i) for i in range(size)], np.float32),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.bos_token_id": sp.bos_id(),
        "tokenizer.ggml.eos_token_id": sp.eos_id(),
        "tokenizer.ggml.unknown_token_id": sp.unk_id(),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def metadata(s: Shape, kind: str, sp: sentencepiece.SentencePieceProcessor) -> dict[str, object]:
    return {
        "general.architecture": "llama",
        "general.name": "tinyslm tales",
        "general.author": "the tinyslm authors",
        "general.license": "mit",
        "general.description": "Writes short children's tales and answers questions about them.",
        "general.languages": ["en"],
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2,
        "llama.vocab_size": s.vocab,
        "llama.context_length": s.context,
        "llama.embedding_length": s.width,
        "llama.block_count": s.layers,
        "llama.feed_forward_length": s.hidden,
        "llama.attention.head_count": s.heads,
        "llama.attention.head_count_kv": s.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": s.eps,
        "llama.rope.dimension_count": s.head_dim,
        "llama.rope.freq_base": s.rope_base,
        **vocabulary(sp),
    }


def tensors(net: dict[str, torch.Tensor], kind: str) -> list[TensorData]:
    listed = []
    for name, tensor in net.items():
        values = tensor.float().numpy()
        descriptor = BY_NAME[kind if values.ndim == 2 else "F32"]
        listed.append(TensorData(name, values.shape[::-1], descriptor.id, descriptor.quantise(values)))
    return listed


def main() -> None:
    parser = argparse.ArgumentParser(description="writes the trained model as GGUF")
    parser.add_argument("--run", type=Path, required=True, help="the folder that train.py filled")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    args = parser.parse_args()
    saved: dict[str, Any] = torch.load(args.run / "final.pt")
    sp = sentencepiece.SentencePieceProcessor(model_file=str(args.run / "tales.model"))
    for kind in FILE_TYPES:
        path = args.out / f"tales-{kind.lower()}.gguf"
        write(path, metadata(Shape(**saved["shape"]), kind, sp), tensors(saved["net"], kind))
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
