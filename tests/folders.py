"""Published folders made by hand: safetensors, config.json, small tokenizers. The models are those of the goldens."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinyslm.convert.families import FAMILIES
from tinyslm.gguf import GGUF
from tinyslm.tokenizer.bpe import BYTES

GOLDENS = Path(__file__).parent / "goldens"
BASE: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "rms_norm_eps": 1e-6,
    "num_key_value_heads": 2, "vocab_size": 40, "max_position_embeddings": 256, "tie_word_embeddings": False,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500.0,
          "original_max_position_embeddings": 64}  # fmt: skip
GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": 40, "layer_norm_epsilon": 1e-5}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**BASE, "model_type": "llama", "head_dim": 6, "rope_parameters": LLAMA3},
    "qwen2": {**BASE, "model_type": "qwen2", "hidden_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1,
              "rope_scaling": YARN},
    "gemma": {**BASE, "model_type": "gemma", "head_dim": 8, "tie_word_embeddings": True},
    "mixtral": {**BASE, "model_type": "mixtral", "head_dim": 6, "num_local_experts": 4, "num_experts_per_tok": 2,
                "rms_norm_eps": 1e-5, "rope_theta": 1000000.0},
    "gpt2": {**GPT2, "model_type": "gpt2"},
}  # fmt: skip
KINDS = {"float32": "F32", "float16": "F16", "uint16": "BF16"}


def safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """uint16 stands for BF16."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, a in tensors.items():
        header[name] = {"dtype": KINDS[a.dtype.name], "shape": list(a.shape), "data_offsets": [at, at + a.nbytes]}
        at += a.nbytes
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"".join(a.tobytes() for a in tensors.values()))


def bf16(a: np.ndarray) -> np.ndarray:
    """The upper halves of float32."""
    return (a.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k whose pairs are neighbours, the first of all pairs before the second: as they are published."""
    parts = [np.concatenate([head[0::2], head[1::2]]) for head in np.split(rows, heads)]
    return np.concatenate(parts)


def published(name: str) -> dict[str, np.ndarray]:
    """The tensors of a golden by their published names and layouts, float16."""
    config, family = CONFIGS[name], FAMILIES[CONFIGS[name]["model_type"]]
    back = {gguf: hf for hf, gguf in family.names.items()}
    out = {}
    with GGUF.open(GOLDENS / f"{name}.gguf") as file:
        for tensor in file.tensors.values():
            if tensor.name == "rope_freqs.weight":
                continue
            a = tensor.format.dequantise(file.read(tensor)).reshape(tensor.shape[::-1])
            stem, _, end = tensor.name.rpartition(".")
            blk, layer, part = stem.split(".") if stem.startswith("blk.") else ("", "", stem)
            hf = back[f"blk.{{i}}.{part}" if blk else part].replace("{i}", layer)
            if part in ("attn_q", "attn_k") and name in ("llama", "mixtral"):
                a = halves(a, config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"])
            if name == "gemma" and part.endswith("norm"):
                a = a - 1
            if name == "gpt2" and a.ndim == 2 and blk:
                a = a.T
            if part.endswith("_exps"):
                out |= {f"{hf.format(e=i)}.{end}": np.float16(expert) for i, expert in enumerate(a)}
            else:
                out[f"{hf}.{end}"] = np.ascontiguousarray(a, np.float32 if a.ndim == 1 else np.float16)
    return out


def bpe_json(**changes: Any) -> dict[str, Any]:
    """A byte-level tokenizer.json: all bytes, some merges, two added tokens."""
    merges = ["l o", "lo w", "Ġ low", "e r", "Ġ t", "t h", "1 2"]
    tokens = [*BYTES, *(merge.replace(" ", "") for merge in merges)]
    vocab = {text: i for i, text in enumerate(tokens)}
    added = [{"id": len(tokens), "content": "<|im_end|>", "special": True},
             {"id": len(tokens) + 1, "content": "<tool>", "special": False}]  # fmt: skip
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": False}
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": cut, "post_processor": None,
            "decoder": None, "model": model} | changes  # fmt: skip


def small_json() -> dict[str, Any]:
    """Forty tokens, the vocabulary of the goldens."""
    vocab = {chr(33 + i): i for i in range(40)}
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    return bpe_json(model=model, added_tokens=[{"id": 0, "content": "!", "special": True}])


def folder(path: Path, name: str, tensors: Mapping[str, np.ndarray] | None = None, **config: Any) -> Path:
    """A model of `CONFIGS`."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIGS[name] | config))
    (path / "tokenizer.json").write_text(json.dumps(small_json()))
    safetensors(path / "model.safetensors", published(name) if tensors is None else tensors)
    return path
