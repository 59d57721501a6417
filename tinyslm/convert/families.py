"""What each model family's published files hold, and what that is called in GGUF.

A row a `model_type` of config.json: the architecture, its keys, and the tensor names. Names and layouts are those that
llama.cpp's converter gives, which docs/gguf.md of https://github.com/ggml-org/ggml describes; OPT's are our own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import OptionError
from . import requirements

Config = Mapping[str, Any]
State = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Family:
    """`names`: stems of the published tensors, {i} for the layer, and what they are called in GGUF. `keys`: what a
    config says, without the architecture's prefix. `neighbours`: rows of q and k are reordered, so that neighbours and
    not halves of a head turn together. `add_one`: what norms are meant to hold beside what they do. `transposed`:
    GGUF stems whose matrices stand the other way round. `ignored`: patterns of tensors that are computed instead."""

    arch: str
    names: Mapping[str, str]
    keys: Callable[[Config], dict[str, object]]
    neighbours: bool = False
    add_one: float = 0.0
    transposed: tuple[str, ...] = ()
    ignored: tuple[str, ...] = (r".*rotary_emb\.inv_freq",)


# ---- config.json ----


def rope_parameters(c: Config, layers: str = "full_attention") -> dict[str, Any]:
    """The rotation's parameters, wherever the config's age puts them."""
    found: dict[str, Any] = dict(c.get("rope_parameters") or c.get("rope_scaling") or {})
    found = dict(found.get(layers) or found)
    found.setdefault("rope_theta", c.get("rope_theta") or 10000.0)
    found["rope_type"] = found.get("rope_type") or found.get("type") or "default"
    if found["rope_type"] in ("su", "longrope"):
        found["rope_type"] = "longrope"
    return found


def head_dim(c: Config) -> int:
    return int(c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"])


def rotated(c: Config) -> int:
    part = c.get("partial_rotary_factor", rope_parameters(c).get("partial_rotary_factor"))
    return int(head_dim(c) * (1.0 if part is None else part))


def rope_keys(c: Config) -> dict[str, object]:
    p = rope_parameters(c)
    keys: dict[str, object] = {"rope.freq_base": float(p["rope_theta"]), "rope.dimension_count": rotated(c)}
    kind = p["rope_type"]
    if kind == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(p["factor"])}
    elif kind == "yarn":
        trained = p.get("original_max_position_embeddings") or c["max_position_embeddings"]
        keys |= {"rope.scaling.type": "yarn", "rope.scaling.factor": float(p["factor"]),
                 "rope.scaling.original_context_length": int(trained)}  # fmt: skip
        for name in ("beta_fast", "beta_slow"):
            if p.get(name) is not None:
                keys[f"rope.scaling.yarn_{name}"] = float(p[name])
        if p.get("attention_factor") is not None:  # GGUF's is beside what YaRN has as a rule
            keys["rope.scaling.attn_factor"] = float(p["attention_factor"]) / (1 + 0.1 * math.log(p["factor"]))
    elif kind == "longrope":
        trained = p.get("original_max_position_embeddings") or c["original_max_position_embeddings"]
        factor = c["max_position_embeddings"] / trained
        usual = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
        given = p.get("attention_factor")
        keys |= {"rope.scaling.original_context_length": int(trained),
                 "rope.scaling.attn_factor": float(usual if given is None else given)}  # fmt: skip
    elif kind not in ("default", "llama3"):
        raise OptionError(f"config.json: rotations scaled by {kind!r} are not supported")
    return keys


def rope_tensors(c: Config) -> dict[str, np.ndarray]:
    """Factors by which frequencies are divided, float32 (rotated / 2,), where the scaling goes by such."""
    p = rope_parameters(c)
    if p["rope_type"] == "longrope":
        return {
            f"rope_factors_{which}.weight": np.array(p[f"{which}_factor"], np.float32) for which in ("long", "short")
        }
    if p["rope_type"] != "llama3":
        return {}
    dim = rotated(c)
    turn = 2 * np.pi * float(p["rope_theta"]) ** (np.arange(0, dim, 2) / dim)  # tokens in a full turn
    trained, factor = p["original_max_position_embeddings"], p["factor"]
    low, high = p["low_freq_factor"], p["high_freq_factor"]
    smooth = np.clip((trained / turn - low) / (high - low), 0, 1)
    return {"rope_freqs.weight": (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)}


def common(c: Config) -> dict[str, object]:
    """What nearly all decoders say."""
    heads = c["num_attention_heads"]
    keys: dict[str, object] = {
        "context_length": c["max_position_embeddings"], "embedding_length": c["hidden_size"],
        "block_count": c["num_hidden_layers"], "feed_forward_length": c["intermediate_size"],
        "attention.head_count": heads, "attention.head_count_kv": c.get("num_key_value_heads") or heads,
        "vocab_size": c["vocab_size"], **rope_keys(c),
    }  # fmt: skip
    if c.get("head_dim"):
        keys |= {"attention.key_length": head_dim(c), "attention.value_length": head_dim(c)}
    return keys


def rms(c: Config) -> dict[str, object]:
    return {**common(c), "attention.layer_norm_rms_epsilon": float(c["rms_norm_eps"])}


def sliding(c: Config) -> dict[str, object]:
    return {**rms(c), **({"attention.sliding_window": int(c["sliding_window"])} if c.get("sliding_window") else {})}


def mixture(c: Config, count: str) -> dict[str, object]:
    return {"expert_count": c[count], "expert_used_count": c["num_experts_per_tok"]}


def mixtral(c: Config) -> dict[str, object]:
    return {**sliding(c), **mixture(c, "num_local_experts")}


def qwen3_moe(c: Config) -> dict[str, object]:
    if not c.get("norm_topk_prob") or c.get("mlp_only_layers") or c.get("decoder_sparse_step", 1) != 1:
        raise OptionError(
            "config.json: experts in some layers alone, or whose weights do not sum to 1, are not supported"
        )
    return {**rms(c), **mixture(c, "num_experts" if "num_experts" in c else "num_local_experts"),
            "expert_feed_forward_length": c["moe_intermediate_size"]}  # fmt: skip


def gemma(c: Config) -> dict[str, object]:
    return {**rms(c), "attention.key_length": head_dim(c), "attention.value_length": head_dim(c)}


def windowed(c: Config, period: int) -> dict[str, object]:
    """Which layers see a window: all but every so many-th, or as listed."""
    near = [kind == "sliding_attention" for kind in c.get("layer_types") or ()]
    usual = [(i + 1) % period > 0 for i in range(c["num_hidden_layers"])]
    listed = {"attention.sliding_window_pattern": near} if near and near != usual else {}
    return {"attention.sliding_window": int(c["sliding_window"]), **listed}


def gemma2(c: Config) -> dict[str, object]:
    return {**gemma(c), **windowed(c, 2),
            "attn_logit_softcapping": float(c["attn_logit_softcapping"]),
            "final_logit_softcapping": float(c["final_logit_softcapping"])}  # fmt: skip


def gemma3(c: Config) -> dict[str, object]:
    near = rope_parameters(c, "sliding_attention")
    base = c.get("rope_local_base_freq") or near["rope_theta"]
    return {**gemma(c), **windowed(c, 6), "rope.freq_base_swa": float(base)}


def olmo3(c: Config) -> dict[str, object]:
    return {**rms(c), **windowed(c, 4)}


def phi2(c: Config) -> dict[str, object]:
    return {**common(c), "attention.layer_norm_epsilon": float(c["layer_norm_eps"])}


def stablelm(c: Config) -> dict[str, object]:
    parallel = bool(c.get("use_parallel_residual"))
    return {**common(c), "attention.layer_norm_epsilon": float(c["layer_norm_eps"]), "use_parallel_residual": parallel}


def granite(c: Config) -> dict[str, object]:
    return {**rms(c), "attention.scale": float(c["attention_multiplier"]), "logit_scale": float(c["logits_scaling"]),
            "embedding_scale": float(c["embedding_multiplier"]),
            "residual_scale": float(c["residual_multiplier"])}  # fmt: skip


def gpt2(c: Config) -> dict[str, object]:
    return {"context_length": c["n_positions"], "embedding_length": c["n_embd"], "block_count": c["n_layer"],
            "feed_forward_length": c.get("n_inner") or 4 * c["n_embd"], "attention.head_count": c["n_head"],
            "attention.layer_norm_epsilon": float(c["layer_norm_epsilon"])}  # fmt: skip


def opt(c: Config) -> dict[str, object]:
    return {"context_length": c["max_position_embeddings"], "embedding_length": c["hidden_size"],
            "embedding_width": c.get("word_embed_proj_dim") or c["hidden_size"], "block_count": c["num_hidden_layers"],
            "feed_forward_length": c["ffn_dim"], "attention.head_count": c["num_attention_heads"],
            "attention.layer_norm_epsilon": 1e-5, "norm_before": bool(c["do_layer_norm_before"])}  # fmt: skip


# ---- tensor names ----

BLOCK = "model.layers.{i}."
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
ATTENTION = {f"{BLOCK}self_attn.{n}_proj": f"blk.{{i}}.attn_{n}" for n in "qkv"} | {
    f"{BLOCK}self_attn.o_proj": "blk.{i}.attn_output"
}
MLP = {f"{BLOCK}mlp.{n}_proj": f"blk.{{i}}.ffn_{n}" for n in ("gate", "up", "down")}
BEFORE = {f"{BLOCK}input_layernorm": "blk.{i}.attn_norm", f"{BLOCK}post_attention_layernorm": "blk.{i}.ffn_norm"}
HEADS = {f"{BLOCK}self_attn.{n}_norm": f"blk.{{i}}.attn_{n}_norm" for n in "qk"}
LLAMA = TOP | ATTENTION | MLP | BEFORE
BEHIND = {f"{BLOCK}post_attention_layernorm": "blk.{i}.post_attention_norm",
          f"{BLOCK}post_feedforward_layernorm": "blk.{i}.post_ffw_norm"}  # fmt: skip
GEMMA2 = TOP | ATTENTION | MLP | BEHIND | {
    f"{BLOCK}input_layernorm": "blk.{i}.attn_norm", f"{BLOCK}pre_feedforward_layernorm": "blk.{i}.ffn_norm",
}  # fmt: skip
# {e} is the expert: they are stacked.
MIXTRAL = TOP | ATTENTION | BEFORE | {f"{BLOCK}block_sparse_moe.gate": "blk.{i}.ffn_gate_inp"} | {
    f"{BLOCK}block_sparse_moe.experts.{{e}}.{hf}": f"blk.{{i}}.ffn_{name}_exps"
    for hf, name in (("w1", "gate"), ("w2", "down"), ("w3", "up"))
}  # fmt: skip
QWEN_MOE = TOP | ATTENTION | BEFORE | HEADS | {f"{BLOCK}mlp.gate": "blk.{i}.ffn_gate_inp"} | {
    f"{BLOCK}mlp.experts.{{e}}.{name}_proj": f"blk.{{i}}.ffn_{name}_exps" for name in ("gate", "up", "down")
}  # fmt: skip
PHI2 = {
    "model.embed_tokens": "token_embd", "model.final_layernorm": "output_norm", "lm_head": "output",
    f"{BLOCK}input_layernorm": "blk.{i}.attn_norm", f"{BLOCK}self_attn.dense": "blk.{i}.attn_output",
    f"{BLOCK}mlp.fc1": "blk.{i}.ffn_up", f"{BLOCK}mlp.fc2": "blk.{i}.ffn_down",
    **{f"{BLOCK}self_attn.{n}_proj": f"blk.{{i}}.attn_{n}" for n in "qkv"},
}  # fmt: skip
PHI3 = TOP | BEFORE | {
    f"{BLOCK}self_attn.qkv_proj": "blk.{i}.attn_qkv", f"{BLOCK}self_attn.o_proj": "blk.{i}.attn_output",
    f"{BLOCK}mlp.gate_up_proj": "blk.{i}.ffn_up", f"{BLOCK}mlp.down_proj": "blk.{i}.ffn_down",
}  # fmt: skip
STABLELM = LLAMA | {f"{BLOCK}self_attn.{n}_layernorm.norms.{{e}}": f"blk.{{i}}.attn_{n}_norm" for n in "qk"}
GPT2 = {
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
    "lm_head": "output",
    "transformer.h.{i}.ln_1": "blk.{i}.attn_norm", "transformer.h.{i}.ln_2": "blk.{i}.ffn_norm",
    "transformer.h.{i}.attn.c_attn": "blk.{i}.attn_qkv", "transformer.h.{i}.attn.c_proj": "blk.{i}.attn_output",
    "transformer.h.{i}.mlp.c_fc": "blk.{i}.ffn_up", "transformer.h.{i}.mlp.c_proj": "blk.{i}.ffn_down",
}  # fmt: skip
OPT_BLOCK = "model.decoder.layers.{i}."
OPT = {
    "model.decoder.embed_tokens": "token_embd", "model.decoder.embed_positions": "position_embd",
    "model.decoder.final_layer_norm": "output_norm", "lm_head": "output",
    "model.decoder.project_in": "project_in", "model.decoder.project_out": "project_out",
    f"{OPT_BLOCK}self_attn_layer_norm": "blk.{i}.attn_norm", f"{OPT_BLOCK}final_layer_norm": "blk.{i}.ffn_norm",
    f"{OPT_BLOCK}self_attn.out_proj": "blk.{i}.attn_output",
    f"{OPT_BLOCK}fc1": "blk.{i}.ffn_up", f"{OPT_BLOCK}fc2": "blk.{i}.ffn_down",
    **{f"{OPT_BLOCK}self_attn.{n}_proj": f"blk.{{i}}.attn_{n}" for n in "qkv"},
}  # fmt: skip
OLMO2 = TOP | ATTENTION | MLP | BEHIND | HEADS

# By the model_type of config.json.
FAMILIES: dict[str, Family] = {
    "llama": Family("llama", LLAMA, rms, neighbours=True),
    "mistral": Family("llama", LLAMA, sliding, neighbours=True),
    "mixtral": Family("llama", MIXTRAL, mixtral, neighbours=True),
    "qwen2": Family("qwen2", LLAMA, rms),
    "qwen3": Family("qwen3", LLAMA | HEADS, rms),
    "qwen3_moe": Family("qwen3moe", QWEN_MOE, qwen3_moe),
    "gemma": Family("gemma", LLAMA, gemma, add_one=1),
    "gemma2": Family("gemma2", GEMMA2, gemma2, add_one=1),
    "gemma3_text": Family("gemma3", GEMMA2 | HEADS, gemma3, add_one=1),
    "phi": Family("phi2", PHI2, phi2),
    "phi3": Family("phi3", PHI3, sliding),
    "smollm3": Family("smollm3", LLAMA, rms, neighbours=True),
    "stablelm": Family("stablelm", STABLELM, stablelm),
    "gpt2": Family("gpt2", GPT2, gpt2, transposed=("attn_qkv", "attn_output", "ffn_up", "ffn_down"),
                   ignored=(r"transformer\.h\.\d+\.attn\.(masked_)?bias",)),
    "granite": Family("granite", LLAMA, granite, neighbours=True),
    "olmo2": Family("olmo2", OLMO2, rms),
    "olmo3": Family("olmo2", OLMO2, olmo3),
    "opt": Family("opt", OPT, opt),
}  # fmt: skip


# ---- converting ----


def family_of(config: Config) -> Family:
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise OptionError(f"config.json: model_type {kind!r} is not supported; there are {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def metadata(config: Config) -> dict[str, object]:
    """The keys of a config, prefixed; general.architecture among them. OptionError for what they cannot say."""
    family = family_of(config)
    requirements.check(config)
    keys = {f"{family.arch}.{name}": value for name, value in family.keys(config).items()}
    return {"general.architecture": family.arch, **keys}


@dataclass(frozen=True)
class Source:
    """A tensor of GGUF and the published ones that it is made of: one, or one for each expert or head."""

    name: str
    parts: tuple[str, ...]


def sources(config: Config, names: list[str]) -> list[Source]:
    """Which GGUF tensors the published ones make, in the order of the files. OptionError for one that has no place.

    Where the files hold the model without its head, their names lack the prefix that all others have.
    """
    family = family_of(config)
    patterns = [(re.compile(re.escape(hf).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{e\}", r"(?P<e>\d+)")), name)
                for hf, name in family.names.items()]  # fmt: skip
    prefix = next(iter(family.names)).partition(".")[0] + "."
    if any(name.startswith(prefix) for name in names):
        prefix = ""
    tied = config.get("tie_word_embeddings", family.arch in ("gpt2", "gemma", "gemma2", "gemma3", "opt"))
    found: dict[str, dict[int, str]] = {}
    for published in names:
        full = published if published.startswith("lm_head.") else prefix + published
        stem, _, end = full.rpartition(".")
        if any(re.fullmatch(pattern, full) for pattern in family.ignored) or (tied and stem == "lm_head"):
            continue
        for pattern, name in patterns:
            if end in ("weight", "bias") and (match := pattern.fullmatch(stem)):
                groups = match.groupdict()
                target = f"{name.format(i=groups.get('i'))}.{end}"
                found.setdefault(target, {})[int(groups.get("e") or 0)] = published
                break
        else:
            raise OptionError(f"tensor {published!r} has no place in {family.arch}")
    return [Source(name, tuple(parts[i] for i in sorted(parts))) for name, parts in found.items()]


def _stacked(name: str, parts: int) -> bool:
    return parts > 1 or name.endswith("_exps.weight")


def shape_of(config: Config, name: str, parts: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of what `converted` makes of parts of these shapes."""
    shape = parts[0]
    if name.endswith(".weight") and name.split(".")[-2] in family_of(config).transposed:
        shape = shape[::-1]
    return (len(parts), *shape) if _stacked(name, len(parts)) else shape


def converted(config: Config, name: str, parts: list[np.ndarray]) -> np.ndarray:
    """The values of a GGUF tensor, from those that `sources` names; shapes have the row length last."""
    family = family_of(config)
    stem, _, end = name.rpartition(".")
    stem = stem.rpartition(".")[2]
    a = np.stack(parts) if _stacked(name, len(parts)) else parts[0]
    if end == "weight" and stem in family.transposed:
        a = np.ascontiguousarray(a.T)
    if family.add_one and end == "weight" and stem.endswith("norm"):
        a = a + np.asarray(family.add_one, a.dtype)
    if family.neighbours and stem in ("attn_q", "attn_k"):
        heads = config["num_attention_heads"] if stem == "attn_q" else config.get("num_key_value_heads")
        heads = heads or config["num_attention_heads"]
        a = a.reshape(heads, 2, a.shape[0] // heads // 2, *a.shape[1:]).swapaxes(1, 2).reshape(a.shape)
    return a


def tensors(config: Config, state: State) -> Iterator[tuple[str, np.ndarray]]:
    """All tensors of GGUF, of a model that is in memory."""
    yield from rope_tensors(config).items()
    for source in sources(config, list(state)):
        yield source.name, converted(config, source.name, [state[part] for part in source.parts])
