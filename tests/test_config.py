"""Hyperparameters and tensors of a file: each is read, or named in an error."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyslm import models
from tinyslm.config import LIMIT, Keys
from tinyslm.errors import FileError, UnsupportedError
from tinyslm.models import Tensors
from tinyslm.ops import Program

PATH = Path("some.gguf")
KEYS: dict[str, object] = {
    "general.architecture": "llama", "llama.block_count": 2, "llama.context_length": 128, "llama.embedding_length": 32,
    "llama.feed_forward_length": 48, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip


@dataclass
class Shaped:
    shape: tuple[int, ...]


def tensors() -> dict[str, Shaped]:
    found = {"token_embd.weight": Shaped((32, 100)), "output_norm.weight": Shaped((32,))}
    for i in range(2):
        for name, shape in {
            "attn_norm": (32,), "attn_q": (32, 32), "attn_k": (32, 16), "attn_v": (32, 16), "attn_output": (32, 32),
            "ffn_norm": (32,), "ffn_gate": (32, 48), "ffn_up": (32, 48), "ffn_down": (48, 32),
        }.items():  # fmt: skip
            found[f"blk.{i}.{name}.weight"] = Shaped(shape)
    return found


def build(
    keys: Mapping[str, object] | None = None, more: Mapping[str, tuple[int, ...] | None] | None = None,
    floats: Any = (),
) -> Program:  # fmt: skip
    """The program of a small file with some keys and tensors replaced; None takes one away."""
    metadata = {k: v for k, v in {**KEYS, **(keys or {})}.items() if v is not None}
    shapes = {**tensors(), **{k: v and Shaped(v) for k, v in (more or {}).items()}}
    return models.build(
        Keys(PATH, metadata),
        Tensors(PATH, {k: v for k, v in shapes.items() if v}, lambda name: np.array(floats, np.float32)),
    )


def test_a_sound_file() -> None:
    program = build()
    assert (program.vocab, program.context, len(program.stores)) == (100, 128, 2)
    assert (program.stores[0].kv_heads, program.stores[0].dk, program.stores[0].dv) == (2, 8, 8)
    assert program.tables[0].frequency == pytest.approx([10000 ** (-2 * i / 8) for i in range(4)], rel=1e-15)
    assert all(name in {w.name for w in program.weights()} for name in tensors())


@pytest.mark.parametrize("name", [k for k in KEYS if k != "llama.attention.head_count_kv"])
def test_a_missing_key_is_named(name: str) -> None:
    with pytest.raises(FileError, match=name):
        build({name: None})


def test_defaults() -> None:
    alone = build({"llama.attention.head_count_kv": None},
                  {f"blk.{i}.attn_{n}.weight": (32, 32) for i in range(2) for n in "kv"})  # fmt: skip
    assert alone.stores[0].kv_heads == 4


ABSURD = [
    0,
    -1,
    2**24 + 1,
    2**63,
    True,
    1.5,
    "4",
    b"4",
    [],
    [4, 4],
    np.array([1, 2]),
    np.array([], np.int32),
    float("nan"),
]


@pytest.mark.parametrize("value", ABSURD, ids=repr)
@pytest.mark.parametrize("name", [k for k, v in KEYS.items() if isinstance(v, int)])
def test_an_absurd_count_is_named(name: str, value: object) -> None:
    with pytest.raises(FileError, match=name):
        build({name: value})


@pytest.mark.parametrize("value", [0.0, -1e-5, float("nan"), float("inf"), "1e-5", True], ids=repr)
@pytest.mark.parametrize("name", ["attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.factor"])
def test_an_absurd_number_is_named(name: str, value: object) -> None:
    with pytest.raises(FileError, match=name):
        build({f"llama.{name}": value})


@pytest.mark.parametrize(
    ("keys", "where"),
    [
        ({"attention.head_count": 5}, "embedding_length"),  # 32 is no multiple of 5
        ({"attention.head_count": 4, "attention.head_count_kv": 3}, "head_count"),
        ({"rope.dimension_count": 10}, "dimension_count"),  # of 8
        ({"rope.dimension_count": 5}, "dimension_count"),
        ({"attention.key_length": 5000}, "key_length"),
        ({"attention.value_length": 2**20}, "value_length"),
    ],
)
def test_numbers_that_do_not_fit_together(keys: dict[str, object], where: str) -> None:
    with pytest.raises(FileError, match=where):
        build({f"llama.{k}": v for k, v in keys.items()})


def test_the_width_of_a_value_does_not_follow_the_key() -> None:
    shapes = {f"blk.{i}.attn_{name}.weight": (32, n) for i in range(2) for name, n in (("q", 64), ("k", 32))}
    keys = {"llama.attention.key_length": 16, "llama.rope.dimension_count": 16}
    assert [(s.dk, s.dv) for s in build(keys, shapes).stores] == [(16, 8), (16, 8)]


def test_lists_with_one_entry_a_layer() -> None:
    per_layer = {"attention.head_count": [4, 4], "attention.head_count_kv": [2, 2], "feed_forward_length": [48, 48]}
    counts = {f"llama.{name}": np.array(value, np.uint32) for name, value in per_layer.items()}
    assert build(counts).stores == build().stores
    with pytest.raises(FileError, match="head_count_kv"):
        build({"llama.attention.head_count_kv": np.array([2, 4])})


@pytest.mark.parametrize(
    "name",
    [
        "attention.scale", "attention.clamp_kqv", "rope.scaling.attn_factor", "rope.new", "final_logit_softcapping",
        "rope.scaling.yarn_log_multiplier", "expert.new", "attention_new", "rope", "logit_scale",
        "use_parallel_residual",
    ],
)  # fmt: skip
def test_a_key_that_changes_the_arithmetic_and_is_not_understood(name: str) -> None:
    with pytest.raises(UnsupportedError, match=name):
        build({f"llama.{name}": 8})


def test_attention_to_later_tokens() -> None:
    with pytest.raises(UnsupportedError, match="later tokens"):
        build({"llama.attention.causal": False})
    build({"llama.attention.causal": True, "llama.expert_count": 0, "llama.expert_used_count": 0})


@pytest.mark.parametrize("window", [-1, 2**25])
def test_an_absurd_window_is_named(window: int) -> None:
    with pytest.raises(FileError, match="sliding_window"):
        build({"llama.attention.sliding_window": window})


def test_other_keys_do_not_matter() -> None:
    build({"llama.vocab_size": 100, "llama.new": 1, "llama.ropes": 1, "gpt.rope.x": 1, "general.name": "x",
           "llama.rope.scaling.finetuned": False, "llama.rope.scaling.original_context_length": 64})  # fmt: skip
    keys = Keys(PATH, {**KEYS, "llama.new": 1})
    models.build(keys, Tensors(PATH, tensors(), lambda name: np.zeros(0)))
    assert keys.unread() == ("llama.new",)


def test_long_values_are_shortened() -> None:
    for value in ("x" * 10**6, ["y"] * 10**6, np.zeros(10**6)):
        with pytest.raises(FileError) as caught:
            build({"llama.block_count": value})
        assert len(str(caught.value)) < 300


def test_architectures() -> None:
    with pytest.raises(UnsupportedError, match="mamba"):
        build({"general.architecture": "mamba"})
    with pytest.raises(FileError, match=r"general\.architecture"):
        build({"general.architecture": 3})
    with pytest.raises(FileError, match="vocabulary"):
        models.build(Keys(PATH, KEYS), Tensors(PATH, {}, lambda name: np.zeros(0)))


# ---- rotations ----


@pytest.mark.parametrize(
    "keys",
    [
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope.scaling.factor": 4.0},
        {"rope.scale_linear": 4.0}, {"rope.scaling.factor": 4},
    ],
)  # fmt: skip
def test_linear_scaling_divides_positions(keys: dict[str, object]) -> None:
    scaled = build({f"llama.{k}": v for k, v in keys.items()}).tables[0].frequency
    assert scaled == pytest.approx([f / 4 for f in build().tables[0].frequency], rel=1e-15)


def test_scaling_that_is_none() -> None:
    assert build({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}).tables == build().tables
    assert build({"llama.rope.scaling.type": "linear"}).tables == build().tables


@pytest.mark.parametrize("factor", [1.0, 4.0])
@pytest.mark.parametrize("kind", ["", "new"])
def test_scaling_of_other_kinds(kind: str, factor: float) -> None:
    with pytest.raises(UnsupportedError, match="scaling"):
        build({"llama.rope.scaling.type": kind, "llama.rope.scaling.factor": factor})


def test_base_and_partial_rotation() -> None:
    program = build({"llama.rope.freq_base": 500000.0, "llama.rope.dimension_count": 6})
    assert program.tables[0].frequency == pytest.approx([500000 ** (-2 * i / 6) for i in range(3)], rel=1e-15)
    assert {(w.rope_heads, w.rope_dim) for w in program.weights() if w.name.endswith("attn_q.weight")} == {(4, 6)}


def test_factors_of_each_pair() -> None:
    program = build(more={"rope_freqs.weight": (4,)}, floats=[1, 2, 4, 8])
    plain = build().tables[0].frequency
    assert program.tables[0].frequency == tuple(f / x for f, x in zip(plain, (1, 2, 4, 8), strict=True))
    with pytest.raises(FileError, match="rope_freqs"):
        build(more={"rope_freqs.weight": (5,)})


@pytest.mark.parametrize("factors", [[1, 1, 1, 0], [1, np.nan, 1, 1], [-1, 1, 1, 1], [1e-9, 1, 1, 1], [1, 1, 1, 1e-40]])
def test_factors_that_give_no_angle(factors: list[float]) -> None:
    with pytest.raises(FileError, match="rotations"):
        build(more={"rope_freqs.weight": (4,)}, floats=factors)


@pytest.mark.parametrize(
    "keys", [{"rope.freq_base": 1e-30}, {"rope.freq_base": 5e-324}, {"rope.scaling.factor": 1e-300}]
)
def test_wild_rotations(keys: dict[str, object]) -> None:
    with pytest.raises(FileError, match="rotations"):
        build({f"llama.{k}": v for k, v in keys.items()})


def test_wide_heads_cost_little_time() -> None:
    start = time.process_time()
    with pytest.raises(FileError):
        build({"llama.attention.key_length": 4096})  # the largest allowed; the tensors are not so
    with pytest.raises(FileError):
        build({"llama.attention.key_length": LIMIT})
    assert time.process_time() - start < 0.7


# ---- tensors ----


@pytest.mark.parametrize("name", tensors())
def test_a_missing_tensor_is_named(name: str) -> None:
    with pytest.raises(FileError, match=name):
        build(more={name: None})


@pytest.mark.parametrize("name", [n for n in tensors() if n != "token_embd.weight"])
def test_a_wrong_shape_is_named(name: str) -> None:
    right = tensors()[name].shape
    wrong = [(*right[:-1], right[-1] + 1), (right[0] + 1, *right[1:]), (*right, 2), right[:-1] or (1, 1)]
    for shape in wrong:
        with pytest.raises(FileError, match=name):
            build(more={name: shape})
    build(more={name: (*right, 1)})


@pytest.mark.parametrize("shape", [(32,), (31, 100), (32, 100, 2), (32, LIMIT + 1)])
def test_wrong_embeddings(shape: tuple[int, ...]) -> None:
    with pytest.raises(FileError, match="token_embd"):
        build(more={"token_embd.weight": shape})


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q_norm.weight", "blk.2.attn_norm.weight", "blk.0.ffn_gate_inp.weight", "cls.weight",
             "blk.0.attn_norm.bias"],
)  # fmt: skip
def test_a_tensor_that_nothing_reads_is_named(name: str) -> None:
    with pytest.raises(UnsupportedError, match=name):
        build(more={name: (32,)})


def test_tensors_that_are_known_to_say_nothing() -> None:
    build(more={"blk.0.attn_rot_embd": (4,), "blk.1.attn_rot_embd.weight": (4,)})


def test_an_output_of_its_own_and_biases() -> None:
    biases = {"attn_q": 32, "attn_k": 16, "attn_v": 16, "attn_output": 32, "ffn_gate": 48, "ffn_up": 48, "ffn_down": 32}
    more = {f"blk.{i}.{name}.bias": (n,) for i in range(2) for name, n in biases.items()}
    program = build(more={**more, "output.weight": (32, 100), "output.bias": (100,)})
    names = {w.name for w in program.weights()}
    assert names >= {*more, "output.weight", "output.bias"}
    rotated = {w.name: w.rope_heads for w in program.weights() if ".bias" in w.name and w.rope_heads}
    assert rotated == {f"blk.{i}.attn_{n}.bias": h for i in range(2) for n, h in (("q", 4), ("k", 2))}
    with pytest.raises(FileError, match=r"output\.weight"):
        build(more={"output.weight": (32, 99)})
