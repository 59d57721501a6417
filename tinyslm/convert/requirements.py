"""What a config.json must say for GGUF to say the same: where GGUF has no key for something, it is what the family's
models have in common, and a config that asks for anything else is refused, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import OptionError

Config = Mapping[str, Any]

SILU: dict[str, tuple[object, ...]] = {"hidden_act": ("silu", "swish")}
TANH = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
NO_WINDOW: dict[str, tuple[object, ...]] = {"use_sliding_window": (False,)}
# Of each model_type, the values that a key may have besides null and not being there.
ALLOWED: dict[str, dict[str, tuple[object, ...]]] = {
    "llama": SILU, "mistral": SILU, "mixtral": SILU, "phi3": SILU, "stablelm": SILU, "granite": SILU,
    "olmo2": SILU | {"clip_qkv": ()}, "olmo3": SILU | {"clip_qkv": ()},
    "qwen2": SILU | NO_WINDOW, "qwen3": SILU | NO_WINDOW, "qwen3_moe": SILU | NO_WINDOW,
    "smollm3": SILU | NO_WINDOW,
    # early configs of Gemma say gelu, and mean its form with tanh
    "gemma": {"hidden_act": ("gelu", *TANH), "hidden_activation": TANH, "use_bidirectional_attention": (False,)},
    "gemma2": {"hidden_activation": TANH, "use_bidirectional_attention": (False,)},
    "gemma3_text": {"hidden_activation": TANH, "use_bidirectional_attention": (False,)},
    "phi": {"hidden_act": TANH, "qk_layernorm": (False,)},
    "gpt2": {"activation_function": TANH, "scale_attn_weights": (True,), "add_cross_attention": (False,),
             "scale_attn_by_inverse_layer_idx": (False,)},
    "opt": {"activation_function": ("relu",), "_remove_final_layer_norm": (False,)},
}  # fmt: skip
EVERYWHERE: dict[str, tuple[object, ...]] = {"quantization_config": (), "is_encoder_decoder": (False,)}
WINDOWED = ("gemma2", "gemma3_text", "olmo3")  # whose keys say which layers see a window


def check(c: Config) -> None:
    """OptionError for a value that would be lost."""
    kind = c["model_type"]
    for key, allowed in {**EVERYWHERE, **ALLOWED[kind]}.items():
        if c.get(key) is not None and c[key] not in allowed:
            _refuse(key, c[key])
    if kind not in WINDOWED and "sliding_attention" in (c.get("layer_types") or ()):
        _refuse("layer_types", "sliding_attention")
    if kind == "smollm3":
        turned = [int((i + 1) % 4 > 0) for i in range(c["num_hidden_layers"])]
        if (c.get("no_rope_layers") or turned) != turned or c.get("no_rope_layer_interval", 4) != 4:
            _refuse("no_rope_layers", c.get("no_rope_layers"))
    if kind in ("gemma2", "gemma3_text"):
        wide = c["num_hidden_layers"] == (46 if kind == "gemma2" else 62)
        usual = c["hidden_size"] // c["num_attention_heads"] if wide else c.get("head_dim", 256)
        if c.get("query_pre_attn_scalar", usual) != usual:
            _refuse("query_pre_attn_scalar", c["query_pre_attn_scalar"])


def _refuse(key: str, value: object) -> None:
    text = repr(value)
    raise OptionError(f"config.json: {key} = {text if len(text) < 60 else text[:60] + '…'} is not supported")
