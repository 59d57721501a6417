"""Makes tests/goldens: of each family a tiny random model, run by its public implementation and converted to GGUF.

    pip install -e '.[goldens]' && python tests/make_family_goldens.py [NAME…]

Needs torch and transformers; the suite does not. A golden is NAME.gguf, whose matrices are F16 and exactly what the
implementation was given, and NAME.npz: `ids` (tokens,), `at` (rows,) and `logits` (rows, vocabulary) at these tokens.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

from tinyslm import gguf
from tinyslm.convert import families

FOLDER = Path(__file__).parent / "goldens"
TOKENS, SHORT, VOCAB = 150, 80, 40
SIZES: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 0,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500.0,
          "original_max_position_embeddings": 64}  # fmt: skip
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 2.5, 4.0],
            "rope_theta": 10000.0, "original_max_position_embeddings": 96, "partial_rotary_factor": 0.75}  # fmt: skip
PHI3 = {"hidden_size": 32, "rope_parameters": LONGROPE, "original_max_position_embeddings": 96,
        "partial_rotary_factor": 0.75, "sliding_window": None}  # fmt: skip
GEMMA2 = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 20, "tie_word_embeddings": True}
# What differs from SIZES, by name; the name up to a dash is that of the model_type, unless `model_type` says otherwise.
GOLDENS: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": LLAMA3},
    "llama-linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    "mistral": {"sliding_window": 20, "head_dim": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen2": {"rope_parameters": YARN, "hidden_size": 48, "num_attention_heads": 2,
              "num_key_value_heads": 1},
    "qwen3": {"head_dim": 8, "tie_word_embeddings": True},
    "qwen3_moe": {"head_dim": 8, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 16,
                  "norm_topk_prob": True, "decoder_sparse_step": 1},
    "gemma": {"head_dim": 8, "tie_word_embeddings": True},
    "gemma2": {**GEMMA2, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "num_hidden_layers": 3},
    "gemma3_text": {**GEMMA2, "num_hidden_layers": 7, "num_key_value_heads": 1, "hidden_size": 16,
                    "intermediate_size": 16, "rope_parameters": {
                        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "phi": {"partial_rotary_factor": 0.5, "num_key_value_heads": 4, "hidden_size": 32, "hidden_act": "gelu_new"},
    "phi3": {**PHI3, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
             "partial_rotary_factor": 1.0, "sliding_window": 20},
    "phi3-long": PHI3,
    "phi3-short": PHI3,
    "smollm3": {"num_hidden_layers": 5, "no_rope_layer_interval": 4, "use_sliding_window": False},
    "stablelm": {"partial_rotary_factor": 0.25, "hidden_size": 32, "use_qkv_bias": True},
    "stablelm-parallel": {"partial_rotary_factor": 0.25, "hidden_size": 32, "qk_layernorm": True,
                          "use_parallel_residual": True},
    "gpt2": {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "granite": {"attention_multiplier": 0.1, "logits_scaling": 0.5, "embedding_multiplier": 5.0,
                "residual_multiplier": 0.4},
    "olmo2": {"num_key_value_heads": 4},
    "olmo3": {"num_hidden_layers": 5, "sliding_window": 20, "rope_parameters": {
                  "full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}},
              "layer_types": [f"{kind}_attention" for kind in ("sliding", "sliding", "full", "sliding", "full")]},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 24, "do_layer_norm_before": True},
    "opt-350m": {"ffn_dim": 32, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
}  # fmt: skip


def model_of(name: str) -> Any:
    """The implementation's model, its weights drawn so that every part of it matters."""
    config = {**SIZES, **GOLDENS[name]}
    kind = config.pop("model_type", name.split("-")[0])
    if config.get("rope_parameters", 0) is None:
        del config["rope_parameters"]
    torch.manual_seed(sum(map(ord, name)))
    made = transformers.AutoConfig.for_model(kind, **config, attn_implementation="eager", dtype="float32")
    model = transformers.AutoModelForCausalLM.from_config(made).eval()
    for parameter_name, p in model.named_parameters():
        drawn = torch.randn_like(p)
        if p.ndim >= 2:
            embeds = "embed" in parameter_name or "wte" in parameter_name or "wpe" in parameter_name
            fan_in = p.shape[0] if kind == "gpt2" and not embeds else p.shape[-1]
            p.data = (drawn * (0.7 if embeds else 1.3 * fan_in**-0.5)).half().float()
        else:
            is_norm = "norm" in parameter_name or ".ln_" in parameter_name
            one = is_norm and parameter_name.endswith("weight") and not kind.startswith("gemma")
            p.data = (one + 0.3 * drawn).half().float()
    return model


def make(name: str) -> None:
    model = model_of(name)
    tokens = SHORT if name.endswith("-short") else TOKENS
    ids = torch.randint(0, VOCAB, (1, tokens))
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0].numpy()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        state = load_file(Path(folder) / "model.safetensors")
    tensors = []
    for tensor, values in families.tensors(config, state):
        matrix = values.ndim > 1 and "attn_q_norm" not in tensor and "attn_k_norm" not in tensor
        data = np.ascontiguousarray(values.astype(np.float16 if matrix else np.float32))
        tensors.append(gguf.TensorData(tensor, values.shape[::-1], int(matrix), data))
    FOLDER.mkdir(exist_ok=True)
    gguf.write(FOLDER / f"{name}.gguf", families.metadata(config), tensors)
    at = np.unique(np.concatenate([np.arange(0, tokens, 9), [62, 63, 64, 65, tokens - 1]])).astype(np.int32)
    arrays = {"ids": ids[0].numpy().astype(np.int32), "at": at, "logits": logits[at].astype(np.float32)}
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays)
    print(f"{name:20} logits {logits.std():.2f}, {(FOLDER / f'{name}.gguf').stat().st_size} bytes")


if __name__ == "__main__":
    for wanted in sys.argv[1:] or GOLDENS:
        make(wanted)
