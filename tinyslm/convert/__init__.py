"""From a model's published files (config.json, safetensors) to GGUF's keys and tensors, by the tables in `families`."""
