"""Each family against the logits of its public implementation (make_family_goldens.py), and what makes it itself: each
special thing, broken on purpose, is missed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import Run

from tinyslm import config, load, models, shapes
from tinyslm.backends import has_native
from tinyslm.backends.base import PAGE, Batch, Weights
from tinyslm.backends.reference import Reference
from tinyslm.errors import FileError, OptionError, TinySLMError, UnsupportedError
from tinyslm.gguf import GGUF, TensorData, write
from tinyslm.models.llama import Llama
from tinyslm.ops import Builder, Op, Program, RopeTable, Weight
from tinyslm.shapes import SHAPES, Shape, make

FOLDER = Path(__file__).parent / "goldens"
NAMES = sorted(path.stem for path in FOLDER.glob("*.gguf"))
EXACT = 1e-4  # float32 throughout; logits deviate by 1 to 4
NEAR = 0.04  # keys and values as float16
Change = Callable[[pytest.MonkeyPatch, dict[str, object]], object]


class Exact(Reference):
    """Keys and values are kept as they are."""

    def new_page(self) -> Any:
        def empty(*shape: int) -> np.ndarray:
            return np.zeros(shape, np.float32)

        return [(empty(s.kv_heads, PAGE, s.dk), empty(s.kv_heads, PAGE, s.dv)) for s in self.program.stores]

    def _run(self, op: Op, inputs: Sequence[np.ndarray], batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        if op.kind != "store":
            return super()._run(op, inputs, batch)
        s, (k, v) = self.program.stores[op.store], inputs
        for row, (sequence, position) in enumerate(zip(batch.sequence, batch.positions, strict=True)):
            keys, values = batch.pages[sequence][position // PAGE][op.store]
            keys[:, position % PAGE] = k[row].reshape(s.kv_heads, s.dk)
            values[:, position % PAGE] = v[row].reshape(s.kv_heads, s.dv)
        return k, np.zeros(len(k), bool)


def build(file: GGUF, metadata: dict[str, object], context: int | None = None) -> Program:
    weights = Weights(file)

    def floats(name: str) -> np.ndarray:
        return weights.floats(Weight(name, file.tensors[name].shape[0]))

    return models.build(config.Keys(file.path, metadata), models.Tensors(file.path, file.tensors, floats), context)


def logits_of(backend: Any, program: Program, golden: dict[str, np.ndarray], chunk: int) -> np.ndarray:
    """The logits at the golden's rows: a prompt in chunks, then the last ten tokens one by one."""
    ids, sequence, got = golden["ids"], Run(backend, program), []
    n = len(ids)
    cuts = [*range(0, n - 10, chunk), *range(n - 10, n + 1)]
    for start, stop in pairwise(cuts):
        batch = sequence.batch([(0, stop - start, stop - start)])
        batch.ids[:] = ids[start:stop]
        logits = np.empty((stop - start, program.vocab), np.float32)
        assert not backend.step(batch, logits).any()
        got.append(logits)
    sequence.close()
    return np.concatenate(got)[golden["at"]]


def context_of(name: str) -> int | None:
    return 96 if name.endswith("-short") else None  # the longest that the short factors are for


def run(name: str, kind: Callable[..., Any], metadata: dict[str, object] | None = None, chunk: int = 50) -> np.ndarray:
    """The logits that a backend gives where the golden has them."""
    golden = dict(np.load(FOLDER / f"{name}.npz"))
    with GGUF.open(FOLDER / f"{name}.gguf") as file:
        program = build(file, metadata or dict(file.metadata), context_of(name))
        return logits_of(kind(program, Weights(file)), program, golden, chunk)


def fastest(program: Program, weights: Weights) -> Any:
    if not has_native():
        return Reference(program, weights)
    from tinyslm.backends.native import Native

    return Native(program, weights, threads=1, rows=64)


def error(name: str, got: np.ndarray) -> float:
    return float(np.abs(got - np.load(FOLDER / f"{name}.npz")["logits"]).max())


def test_every_family_has_a_golden() -> None:
    arches = set()
    for name in NAMES:
        with GGUF.open(FOLDER / f"{name}.gguf") as file:
            arches.add(file.metadata["general.architecture"])
    assert arches == set(models.FAMILIES)


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_the_public_implementation(name: str) -> None:
    assert error(name, run(name, Exact)) < EXACT


@pytest.mark.parametrize("name", NAMES)
def test_logits_with_narrow_keys_and_values_in_any_chunk(name: str) -> None:
    got = run(name, fastest)
    assert error(name, got) < NEAR
    np.testing.assert_array_equal(run(name, fastest, chunk=17).view(np.int32), got.view(np.int32))


# ---- what makes a family itself, broken on purpose ----


def key(name: str, value: object) -> Change:
    return lambda patch, metadata: metadata.update({f"{metadata['general.architecture']}.{name}": value})


def attribute(family: type[Llama], name: str, value: object) -> Change:
    return lambda patch, metadata: patch.setattr(family, name, value)


def context(tokens: int) -> Change:
    return lambda patch, metadata: patch.setattr(f"{__name__}.context_of", lambda name: tokens)


def without(family: type[Llama], name: str) -> Change:
    """The method as Llama has it."""
    return attribute(family, name, getattr(Llama, name))


def method(owner: type, name: str, changed: Callable[..., Any]) -> Change:
    """`changed` gets the method as it is, and its arguments."""
    plain = getattr(owner, name)
    return lambda patch, metadata: patch.setattr(owner, name, lambda *args, **named: changed(plain, *args, **named))


def tables(change: Callable[[RopeTable], RopeTable]) -> Change:
    def changed(plain: Callable[..., int], b: Builder, *args: Any) -> int:
        number = plain(b, *args)
        b.tables[number] = change(b.tables[number])
        return number

    return method(Builder, "table", changed)


def plain_frequency(table: RopeTable, base: float = 10000.0) -> RopeTable:
    n = len(table.frequency)
    return replace(table, frequency=tuple(base ** (-i / n) for i in range(n)))


F = models.FAMILIES
no_window = attribute(Llama, "window", lambda self, i: 0)
no_bias = method(Builder, "matmul", lambda plain, b, x, w, bias=None: plain(b, x, w))
no_magnitude = tables(lambda t: replace(t, magnitude=1.0))
no_layernorm = method(Builder, "layernorm", lambda plain, b, x, w, bias, eps, heads=1: b.rmsnorm(x, w, eps, heads))
halves = attribute(Llama, "PAIRS", "halves")
BROKEN: dict[str, Change] = {
    "llama: no factors of frequencies": tables(lambda t: plain_frequency(t, 500.0)),
    "llama: halves turn": halves,
    "llama-linear: no scaling": key("rope.scaling.factor", 1.0),
    "mistral: no window": no_window,
    "mistral: a window longer by one": key("attention.sliding_window", 21),
    "mistral: a window shorter by one": key("attention.sliding_window", 19),
    "mixtral: one expert of two": key("expert_used_count", 1),
    "mixtral: experts weigh otherwise": method(Builder, "route", lambda plain, b, x, n: plain(b, b.scale(x, 0.3), n)),
    "mixtral: the worst experts": method(Builder, "route", lambda plain, b, x, n: plain(b, b.scale(x, -1.0), n)),
    "qwen2: no biases": no_bias,
    "qwen2: neighbours turn": attribute(F["qwen2"], "PAIRS", "neighbours"),
    "qwen2: no YaRN": tables(plain_frequency),
    "qwen2: YaRN without its magnitude": no_magnitude,
    "qwen2: YaRN with other bounds": key("rope.scaling.yarn_beta_slow", 8.0),
    "qwen3: no norms of heads": without(F["qwen3"], "of_head"),
    "qwen3: norms after turning": attribute(F["qwen3"], "turned", lambda self, i, x, heads: x),
    "qwen3_moe: two experts of three": key("expert_used_count", 2),
    "gemma: the embedding as it is": without(F["gemma"], "embedded"),
    "gemma: SiLU": attribute(F["gemma"], "ACT", "silu"),
    "gemma2: scores without a cap": key("attn_logit_softcapping", 0.0),
    "gemma2: logits without a cap": key("final_logit_softcapping", 0.0),
    "gemma2: no window": attribute(F["gemma2"], "window", lambda self, i: 0),
    "gemma2: windows in every layer": attribute(F["gemma2"], "window", lambda self, i: 20),
    "gemma2: windows in the other layers": attribute(F["gemma2"], "window", lambda self, i: 20 * (i % 2)),
    "gemma2: no norms behind": without(F["gemma2"], "after"),
    "gemma3_text: one base for all": key("rope.freq_base_swa", 1000000.0),
    "gemma3_text: no scaling of far layers": key("rope.scaling.factor", 1.0),
    "gemma3_text: every fifth layer sees all": attribute(F["gemma3"], "PERIOD", 5),
    "gemma3_text: no window": key("attention.sliding_window", 1000),
    "gemma3_text: no norms of heads": without(F["gemma3"], "of_head"),
    "phi: whole heads turn": key("rope.dimension_count", 8),
    "phi: no bias of the output": no_bias,
    "phi: RMSNorm": no_layernorm,
    "phi: ReLU": attribute(F["phi2"], "ACT", "relu"),
    "phi: one after the other": without(F["phi2"], "layer"),
    "phi: other pairs": attribute(F["phi2"], "PAIRS", "neighbours"),
    "phi3: no window": no_window,
    "phi3: gate and up exchanged": method(Builder, "glu", lambda plain, b, x, y, act: plain(b, y, x, act)),
    "phi3-long: short factors": context(96),
    "phi3-long: no magnitude": no_magnitude,
    "phi3-long: whole heads turn": key("rope.dimension_count", 8),
    "phi3-short: long factors": context(97),
    "phi3-short: no magnitude": no_magnitude,
    "smollm3: every layer turns": without(F["smollm3"], "rotation"),
    "smollm3: every fifth layer does not": attribute(F["smollm3"], "UNTURNED", 5),
    "stablelm: whole heads turn": key("rope.dimension_count", 8),
    "stablelm: no biases": no_bias,
    "stablelm: RMSNorm": no_layernorm,
    "stablelm-parallel: one after the other": without(F["stablelm"], "layer"),
    "stablelm-parallel: no norms of heads": without(F["stablelm"], "of_head"),
    "gpt2: positions shifted": method(Builder, "position", lambda plain, b, w, at: plain(b, w, at + 1)),
    "gpt2: ReLU": attribute(F["gpt2"], "ACT", "relu"),
    "gpt2: no biases": no_bias,
    "granite: scores": key("attention.scale", 6**-0.5),
    "granite: logits": key("logit_scale", 1.0),
    "granite: embeddings": key("embedding_scale", 1.0),
    "granite: residuals": key("residual_scale", 1.0),
    "olmo2: norms before": attribute(F["olmo2"], "before", lambda self, x, name: self.norm(x, "output_norm")),
    "olmo2: no norms behind": without(F["olmo2"], "after"),
    "olmo2: no norms of queries and keys": without(F["olmo2"], "of_head"),
    "olmo3: no window": no_window,
    "olmo3: every layer sees a window": attribute(F["olmo2"], "window", lambda self, i: self.sliding),
    "olmo3: one rotation for all": attribute(F["olmo2"], "rotation", lambda self, i: self.tables[0]),
    "olmo3: plain rotation for all": attribute(F["olmo2"], "rotation", lambda self, i: self.tables[1]),
    "opt: positions not offset": method(Builder, "position", lambda plain, b, w, at: plain(b, w, 0)),
    "opt: GELU": attribute(F["opt"], "ACT", "gelu"),
    "opt: no biases": no_bias,
    "opt-350m: norms before": key("norm_before", True),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_missed(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By other logits, or by a tensor that has then no place, or is not there."""
    name = case.split(":")[0]
    with GGUF.open(FOLDER / f"{name}.gguf") as file:
        metadata = dict(file.metadata)
    BROKEN[case](monkeypatch, metadata)
    try:
        got = run(name, fastest, metadata)
    except (FileError, UnsupportedError):
        return
    assert error(name, got) > 2 * NEAR


# ---- what a file may say ----


def test_an_older_mixture_has_tensors_of_each_expert(tmp_path: Path) -> None:
    golden = dict(np.load(FOLDER / "mixtral.npz"))
    with GGUF.open(FOLDER / "mixtral.gguf") as file:
        tensors: list[TensorData] = []
        for tensor in file.tensors.values():
            rows = file.read(tensor)
            if "_exps" not in tensor.name:
                tensors.append(TensorData(tensor.name, tensor.shape, tensor.format.id, rows))
                continue
            k, n, count = tensor.shape
            stem = tensor.name.removesuffix("_exps.weight")
            for i in range(count):
                part = rows[i * n : (i + 1) * n]
                tensors.append(TensorData(f"{stem}.{i}.weight", (k, n), tensor.format.id, part))
        write(tmp_path / "older.gguf", dict(file.metadata), tensors)
    with GGUF.open(tmp_path / "older.gguf") as file:
        program = build(file, dict(file.metadata))
        assert error("mixtral", logits_of(fastest(program, Weights(file)), program, golden, 50)) < NEAR


@pytest.mark.parametrize("name", ["llama", "phi"])
def test_one_tensor_of_queries_keys_and_values(name: str, tmp_path: Path) -> None:
    """With and without biases, and where neighbours turn, so that its rows are reordered by heads."""
    golden = dict(np.load(FOLDER / f"{name}.npz"))
    with GGUF.open(FOLDER / f"{name}.gguf") as file:
        rows = {tensor.name: file.read(tensor) for tensor in file.tensors.values()}
        tensors = [TensorData(t.name, t.shape, t.format.id, rows[t.name]) for t in file.tensors.values()
                   if not any(f"attn_{part}." in t.name for part in "qkv")]  # fmt: skip
        for q in [t for t in file.tensors.values() if "attn_q." in t.name]:
            parts = [file.tensors[q.name.replace("attn_q", f"attn_{part}")] for part in "qkv"]
            fused = np.concatenate([rows[t.name].ravel() for t in parts])
            shape = (*q.shape[:-1], sum(t.shape[-1] for t in parts))
            tensors.append(TensorData(q.name.replace("attn_q", "attn_qkv"), shape, q.format.id, fused))
        write(tmp_path / "fused.gguf", dict(file.metadata), tensors)
    with GGUF.open(tmp_path / "fused.gguf") as file:
        program = build(file, dict(file.metadata))
        assert error(name, logits_of(fastest(program, Weights(file)), program, golden, 50)) < NEAR


def program_of(name: str, drop: str = "", **changed: object) -> Program:
    """Of a golden with other keys, and without those that end with `drop`."""
    with GGUF.open(FOLDER / f"{name}.gguf") as file:
        metadata = {k: v for k, v in file.metadata.items() if not (drop and k.endswith(drop))}
        arch = metadata["general.architecture"]
        return build(file, metadata | {f"{arch}.{k.replace('__', '.')}": v for k, v in changed.items()})


def test_what_gemma_2_and_3_are_where_a_file_does_not_say() -> None:
    """As llama.cpp has it, and for Gemma 2 its public implementation."""
    capped = program_of("gemma2", "softcapping").ops
    assert {op.softcap for op in capped if op.kind == "attend"} == {50.0}
    assert [op.softcap for op in capped if op.kind == "softcap"] == [30.0]
    assert [s.window for s in program_of("gemma2", "sliding_window").stores] == [4096, 0, 4096]
    far = program_of("gemma3_text", "sliding_window")
    assert {s.window for s in far.stores} == {0}
    assert {far.tables[op.table].frequency[0] for op in far.ops if op.kind == "rope"} == {1 / 8}


def test_layers_with_a_window_one_by_one() -> None:
    listed = np.array([True, False, False, True, True, False, True])
    program = program_of("gemma3_text", attention__sliding_window_pattern=listed)
    assert [s.window > 0 for s in program.stores] == listed.tolist()
    for wrong in (listed[1:], np.arange(7), np.array([listed])):
        with pytest.raises(FileError, match=r"sliding_window_pattern.*7 booleans"):
            program_of("gemma3_text", attention__sliding_window_pattern=wrong)


def test_granite_may_not_turn_and_zero_is_no_multiplier() -> None:
    assert not any(op.kind == "rope" for op in program_of("granite", rope__scaling__finetuned=False).ops)
    program = program_of("granite", attention__scale=0.0, residual_scale=0.0, embedding_scale=0.0, logit_scale=1.0)
    assert not any(op.kind == "scale" for op in program.ops)
    assert {op.scale for op in program.ops if op.kind == "attend"} == {1 / math.sqrt(6)}
    with pytest.raises(FileError, match="residual_scale"):
        program_of("granite", residual_scale=-1.0)


def test_stablelm_goes_by_its_tensors() -> None:
    """Converters say parallel where a config says nothing; norms before the MLP say that it is not so."""
    assert program_of("stablelm", use_parallel_residual=True) == program_of("stablelm")


def test_yarn_of_a_factor_below_one_leaves_the_magnitude() -> None:
    assert program_of("qwen2", rope__scaling__factor=0.5).tables[0].magnitude == 1.0


def test_longrope_without_a_factor_of_scores() -> None:
    assert program_of("phi3-long", "attn_factor").tables[0].magnitude == 1.0


@dataclass
class Shaped:
    shape: tuple[int, ...]


ABSURD = [-1, 0, 1, 1 << 40, "x", float("nan"), 1e30, True, [], np.array([1, 2]), np.array([True])]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_wrong_with_a_file_is_told_in_one_line(name: str) -> None:
    """Tensors that are missing or of other shapes, keys that are not known or absurd."""
    with GGUF.open(FOLDER / f"{name}.gguf") as file:
        metadata, whole = dict(file.metadata), {t.name: Shaped(t.shape) for t in file.tensors.values()}
    ones = {t: np.ones(s.shape[0], np.float32) for t, s in whole.items()}
    arch = str(metadata["general.architecture"])

    def told(changed: dict[str, Any], keys: dict[str, object] = metadata) -> TinySLMError | None:
        listed = {t: s for t, s in changed.items() if s}
        try:
            models.build(config.Keys(Path(name), keys), models.Tensors(Path(name), listed, ones.__getitem__))
        except TinySLMError as wrong:
            return wrong
        return None

    may_lack = {"output.weight", "rope_freqs.weight", *(t for t in whole if arch in ("qwen2", "stablelm", "opt"))}
    for tensor, s in whole.items():
        if "blk.1" not in tensor:
            assert isinstance(told({**whole, tensor: None}), FileError) or tensor in may_lack
            assert isinstance(told({**whole, tensor: Shaped((s.shape[0] + 1, *s.shape[1:]))}), FileError)
            assert isinstance(told({**whole, tensor: Shaped((*s.shape, 2))}), FileError)
    assert isinstance(told({**whole, "blk.0.mystery.weight": Shaped((3,))}), UnsupportedError)
    assert isinstance(told(whole, {**metadata, f"{arch}.attention.mystery": 1}), UnsupportedError)
    for key in [k for k in metadata if k.startswith(f"{arch}.")]:
        for value in ABSURD:
            assert "\n" not in str(told(whole, {**metadata, key: value}))


def test_learned_positions_end(tmp_path: Path) -> None:
    with GGUF.open(FOLDER / "gpt2.gguf") as file:
        with pytest.raises(OptionError, match="256 tokens"):
            build(file, dict(file.metadata), 257)
        build(file, dict(file.metadata), 100)


def small(shape: Shape) -> Shape:
    """A small one of the same make."""
    return replace(shape, layers=2, width=64, heads=4, kv_heads=max(1, 4 * shape.kv_heads // shape.heads), ff=96,
                   vocab=400, context=300, head_dim=16, rotated=shape.rotated and 8,
                   experts=shape.experts and (4, 2, 32))  # fmt: skip


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape.arch != "llama" or shape.experts])
def test_shapes_of_the_bench_run(name: str, tmp_path: Path) -> None:
    make(tmp_path / "small.gguf", small(SHAPES[name]), "Q8_0")
    with load(tmp_path / "small.gguf", threads=1, context=100) as model:
        assert np.isfinite(model.logits([1, 2, 3])).all()


@pytest.mark.skipif(not has_native(), reason="the C core was not built")
@pytest.mark.parametrize("name", ["llama", "qwen2", "granite"])  # without biases, with some, with scales of its own
def test_matrices_with_scales_of_their_own(tmp_path: Path, name: str) -> None:
    """As files made of NVIDIA's NVFP4 have them: halved matrices under scales of 2 are the same model, and what is for
    rounding activations changes nothing."""
    from tinyslm.backends.native import Native

    tensors = list[TensorData]()
    with GGUF.open(FOLDER / f"{name}.gguf") as file:
        metadata = file.metadata
        for t in file.tensors.values():
            values = t.format.dequantise(file.read(t))
            if t.name.endswith((".weight", "_weight")) and len(t.shape) == 2 and t.name != "token_embd.weight":
                values = values / 2
                stem, number = t.name.removesuffix(".weight"), np.full(1, 2, np.float32)
                tensors += [TensorData(f"{stem}.{end}", (1,), 0, number) for end in ("scale", "input_scale")]
            tensors.append(TensorData(t.name, t.shape, 0, values))
    assert sum(t.name.endswith(".scale") for t in tensors) >= 14
    expert = TensorData("blk.0.ffn_up_exps.scale", (2,), 0, np.ones(2, np.float32))
    nan = [t._replace(data=np.full(1, np.nan, np.float32)) if t.name == "blk.1.ffn_up.scale" else t for t in tensors]
    found = []
    for label, parts in (("scaled", tensors), ("expert", [*tensors, expert]), ("nan", nan)):
        write(tmp_path / f"{label}.gguf", metadata, parts)
    for path, kind in (
        (FOLDER / f"{name}.gguf", Native),
        (tmp_path / "scaled.gguf", Native),
        (tmp_path / "scaled.gguf", Reference),
    ):
        with GGUF.open(path) as file:
            program = build(file, metadata)
            backend = kind(program, Weights(file), *([1, 16] if kind is Native else []))
        found.append(Run(backend, program).step([(0, 9, 9)])[0])
        backend.close()
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found[1], found[2])
    for label, error in (
        ("expert", "experts have scales of their own.*blk.0.ffn_up_exps"),
        ("nan", "no finite number"),
    ):
        with GGUF.open(tmp_path / f"{label}.gguf") as file, pytest.raises(FileError, match=error):
            build(file, metadata)


def test_shapes_are_of_every_family() -> None:
    assert {shape.arch for shape in SHAPES.values()} == set(models.FAMILIES)


@pytest.mark.skipif(not has_native(), reason="the C core was not built")
@pytest.mark.parametrize("mix", ["Q4_K_M", "F16"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_step_of_every_shape_takes_little_memory(name: str, mix: str) -> None:
    """What stands beside weights, keys and values has 64 MB. It goes by the widths alone."""
    from tinyslm.backends.native import KERNELS
    from tinyslm.program import lower_to_fit

    shape = replace(SHAPES[name], vocab=400, layers=3)
    tensors = {t.name: t for t in shapes._tensors(shape, shapes.real_kinds(shape, mix), np.random.default_rng(0))}
    path, keys = Path("shape.gguf"), shapes.metadata(shape)
    ones = models.Tensors(path, tensors, lambda tensor: np.ones(tensors[tensor].shape[0], np.float32))
    program = models.build(config.Keys(path, keys), ones)
    lowered = lower_to_fit(program, {tensor: t.type for tensor, t in tensors.items()}, KERNELS)
    assert lowered.workspace < 54 << 20
    assert lowered.rows >= (256 if not shape.experts else 128)
