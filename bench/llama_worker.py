"""llama.cpp through llama-cpp-python, as compare.py asks it: one JSON object a line in, one out.

Runs in any environment that has llama-cpp-python; tinyslm need not be there. The first line names the model and the
settings; then {"prompt", "gen", "depth", "sequences", "variant"} asks for the nanoseconds of one repetition, "warm"
for a short one before that is not counted, and {"ids", "variant"} for the logits behind these tokens. Counted is what
passes within llama_decode and llama_synchronize, and nothing of Python.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import sys
import time
from typing import Any

import llama_cpp.llama_cpp as llama

LOG = llama.llama_log_callback(lambda *_: None)


class Context:
    """One variant: a context on a model, and how many tokens stand in each of its sequences."""

    def __init__(self, model: Any, settings: dict[str, Any], flash: bool) -> None:
        params = llama.llama_context_default_params()
        params.n_ctx = settings["context"] * settings["sequences"]
        params.n_batch, params.n_ubatch = settings["n_batch"], settings["n_ubatch"]
        params.n_seq_max = settings["sequences"]
        params.n_threads = params.n_threads_batch = settings["threads"]
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.no_perf = True
        self.context = llama.llama_init_from_model(model, params)
        if not self.context:
            raise SystemExit("llama.cpp made no context")
        self.vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self.most = settings["n_batch"]
        self.memory = llama.llama_get_memory(self.context)
        self.lengths = [0] * settings["sequences"]
        self.batch = llama.llama_batch_init(self.most, 0, 1)
        self.spent = 0  # ns in decoding, ever growing

    def decode(self, tokens: list[tuple[int, int, bool]]) -> None:
        """Ids, each with its sequence and whether its logits are wanted; ends when all is computed."""
        b = self.batch
        b.n_tokens = len(tokens)
        for i, (token, sequence, wanted) in enumerate(tokens):
            b.token[i], b.pos[i], b.n_seq_id[i], b.seq_id[i][0] = token, self.lengths[sequence], 1, sequence
            b.logits[i] = wanted
            self.lengths[sequence] += 1
        start = time.perf_counter_ns()
        if llama.llama_decode(self.context, b):
            raise SystemExit("llama_decode failed")
        llama.llama_synchronize(self.context)
        self.spent += time.perf_counter_ns() - start

    def read(self, sequence: int, ids: list[int]) -> None:
        for at in range(0, len(ids), self.most):
            part = ids[at : at + self.most]
            self.decode([(token, sequence, i == len(part) - 1) for i, token in enumerate(part)])

    def cut(self, sequence: int, length: int) -> None:
        llama.llama_memory_seq_rm(self.memory, sequence, length, -1)
        self.lengths[sequence] = length

    def random(self, count: int) -> list[int]:
        return [random.randrange(self.vocab) for _ in range(count)]

    def fill(self, depth: int, sequences: int) -> None:
        """Have exactly `depth` tokens in the sequences that take part, and none in the others."""
        for s, length in enumerate(self.lengths):
            wanted = depth if s < sequences else 0
            if length > wanted:
                self.cut(s, wanted)
            elif length < wanted:
                self.read(s, self.random(wanted - length))

    def repeat(self, case: dict[str, Any]) -> int:
        self.fill(case["depth"], case["sequences"])
        prompt = self.random(case["prompt"])
        rows = [self.random(case["sequences"]) for _ in range(case["gen"])]
        before = self.spent
        if prompt:
            self.read(0, prompt)
        for row in rows:
            self.decode([(token, s, True) for s, token in enumerate(row)])
        taken = self.spent - before
        self.fill(case["depth"], case["sequences"])
        return taken

    def logits(self, ids: list[int]) -> list[float]:
        self.fill(0, 0)
        self.read(0, ids)
        found = llama.llama_get_logits_ith(self.context, -1)
        values = list(ctypes.cast(found, ctypes.POINTER(ctypes.c_float * self.vocab)).contents)
        self.fill(0, 0)
        return values


def load(path: str, repack: bool) -> Any:
    params = llama.llama_model_default_params()
    params.n_gpu_layers, params.use_extra_bufts = 0, repack
    model = llama.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise SystemExit(f"llama.cpp cannot load {path}")
    return model


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches compare.py, which closes our stdin
    llama.llama_log_set(LOG, None)
    llama.llama_backend_init()
    settings = json.loads(sys.stdin.readline())
    contexts: dict[str, Context] = {}
    for repack in (True, False):
        model = load(settings["model"], repack)
        for flash in (True, False):
            name = f"{'repacked' if repack else 'as stored'}, flash attention {'on' if flash else 'off'}"
            contexts[name] = Context(model, settings, flash)
    print(json.dumps({"variants": list(contexts), "about": llama.llama_print_system_info().decode()}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        context = contexts[asked["variant"]]
        if "ids" in asked:
            answer: dict[str, Any] = {"logits": context.logits(asked["ids"])}
        else:
            if asked.get("warm"):
                context.repeat({**asked, "gen": min(asked["gen"], 2)})
            answer = {"ns": context.repeat(asked)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
