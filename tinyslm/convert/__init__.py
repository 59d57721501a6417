"""From a model's published files (config.json, safetensors, tokenizer) to GGUF, by the tables in `families`."""

from __future__ import annotations

from .folder import KINDS, convert_folder

__all__ = ["KINDS", "convert_folder"]
