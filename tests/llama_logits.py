"""llama.cpp's logits, for compare_families.py; runs in any environment that has llama-cpp-python and NumPy.

One JSON object a line in: {"file", "ids", "decode", "context", "kv", "out"}. The last `decode` tokens go one by one,
those before them at once; logits of all go to `out` as .npy, and a line comes out: {} or {"error"}.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import pairwise
from typing import Any

import llama_cpp.llama_cpp as llama
import numpy as np

LOG = llama.llama_log_callback(lambda *_: None)
KV_TYPES = {"F32": 0, "F16": 1}


def logits(asked: dict[str, Any]) -> np.ndarray:
    settings = llama.llama_model_default_params()
    settings.n_gpu_layers, settings.use_mmap = 0, False
    model = llama.llama_model_load_from_file(os.fsencode(asked["file"]), settings)
    if not model:
        raise ValueError("llama.cpp cannot load the file")
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = asked["context"]
    params.n_threads = params.n_threads_batch = 1
    params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.type_k = params.type_v = KV_TYPES[asked["kv"]]
    context = llama.llama_init_from_model(model, params)
    if not context:
        raise ValueError("llama.cpp makes no context")
    ids, vocab = asked["ids"], llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    batch = llama.llama_batch_init(len(ids), 0, 1)
    rows: list[np.ndarray] = []
    cuts = [0, *range(len(ids) - asked["decode"], len(ids) + 1)]
    for start, stop in pairwise(cuts):
        batch.n_tokens = stop - start
        for i in range(stop - start):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = ids[start + i], start + i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, 1
        if llama.llama_decode(context, batch):
            raise ValueError("llama_decode failed")
        rows.append(np.ctypeslib.as_array(llama.llama_get_logits(context), (stop - start, vocab)).copy())
    llama.llama_batch_free(batch)
    llama.llama_free(context)
    llama.llama_model_free(model)
    return np.concatenate(rows)


def main() -> None:
    llama.llama_log_set(LOG, None)
    llama.llama_backend_init()
    for line in sys.stdin:
        asked, answer = json.loads(line), {}
        try:
            np.save(asked["out"], logits(asked))
        except ValueError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
