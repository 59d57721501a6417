"""Model families: each turns hyperparameters and tensor names into a program of plain ops."""

from __future__ import annotations

from ..config import Keys
from ..errors import FileError, UnsupportedError
from ..ops import Program
from .gemma import Gemma, Gemma2, Gemma3
from .gpt2 import GPT2
from .granite import Granite
from .llama import Llama
from .olmo2 import Olmo2
from .opt import Opt
from .phi2 import Phi2
from .phi3 import Phi3
from .qwen import Qwen2, Qwen3
from .smollm3 import SmolLM3
from .stablelm import StableLM
from .tensors import Tensor, Tensors

__all__ = ["FAMILIES", "Tensor", "Tensors", "build"]

# By general.architecture.
FAMILIES: dict[str, type[Llama]] = {
    "llama": Llama, "qwen2": Qwen2, "qwen3": Qwen3, "qwen3moe": Qwen3, "gemma": Gemma, "gemma2": Gemma2,
    "gemma3": Gemma3, "phi2": Phi2, "phi3": Phi3, "smollm3": SmolLM3, "stablelm": StableLM, "gpt2": GPT2,
    "granite": Granite, "olmo2": Olmo2, "opt": Opt,
}  # fmt: skip


# By what NVIDIA's kernels round activations to 4 bits before a product in NVFP4. No activations are rounded so here.
INPUT_SCALES = r".*\.input_scale"


def build(keys: Keys, tensors: Tensors, context: int | None = None) -> Program:
    """The program of a file: every tensor read or on the family's ignore list, every key that matters understood.

    context: the tokens that the user asks for, as some rotations go by them; None is the file's own.
    Raises UnsupportedError for another architecture, FileError for what is missing, absurd or left over.
    """
    family = FAMILIES.get(keys.arch)
    if family is None:
        raise UnsupportedError(keys.path, "this architecture is not supported", where="general.architecture",
                               expected=" or ".join(sorted(FAMILIES)), got=keys.arch)  # fmt: skip
    if not tensors.tensors:
        raise FileError(keys.path, "the file holds a vocabulary and no weights: it can be shown and tokenize, not run")
    program = family(keys, tensors, context).program()
    keys.refuse_unread()
    tensors.refuse_unused((*family.IGNORED, INPUT_SCALES))
    return program
