"""Templates for files that have none, chosen by the control tokens of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

from ..tokenizer import Tokenizer


@dataclass(frozen=True)
class BuiltIn:
    """needs: control tokens that a vocabulary must have for it. stop: texts that end an answer."""

    name: str
    needs: tuple[str, ...]
    source: str
    stop: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        if self.needs:
            return f"messages are laid out as {self.name} has them, which its tokens {' and '.join(self.needs)} suggest"
        return "messages are laid out as a dialogue in plain text; a model that was not trained to chat may ramble"


def _turns(before: str, after: str, answer: str, bos: str = "{{ bos_token }}") -> str:
    """A template whose messages stand between two texts. `answer`: what comes before the assistant's."""
    return (
        f"{bos}{{% for message in messages %}}{before}{{{{ message.content | trim }}}}{after}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{answer}{{% endif %}}"
    )


_LLAMA2 = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message.role == 'system' %}{% set ns.system = '<<SYS>>\\n' ~ message.content ~ '\\n<</SYS>>\\n\\n' %}"
    "{% elif message.role == 'assistant' %}{{ ' ' ~ message.content | trim ~ ' ' ~ eos_token }}"
    "{% else %}{{ '[INST] ' ~ ns.system ~ message.content ~ ' [/INST]' }}{% set ns.system = '' %}{% endif %}"
    "{% endfor %}"
)
_GEMMA_ROLE = "{{ 'model' if message.role == 'assistant' else 'user' }}"
_PLAIN = "{{ message.role | capitalize }}: "

BUILT_IN = (
    BuiltIn("ChatML", ("<|im_start|>", "<|im_end|>"), _turns(
        "{{ '<|im_start|>' + message.role + '\\n' }}", "{{ '<|im_end|>\\n' }}",
        "{{ '<|im_start|>assistant\\n' }}", "")),
    BuiltIn("Llama 3", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), _turns(
        "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}", "<|eot_id|>",
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}")),
    BuiltIn("Gemma", ("<start_of_turn>", "<end_of_turn>"), _turns(
        f"<start_of_turn>{_GEMMA_ROLE}{{{{ '\\n' }}}}", "{{ '<end_of_turn>\\n' }}",
        "{{ '<start_of_turn>model\\n' }}")),
    BuiltIn("Phi-3", ("<|user|>", "<|assistant|>", "<|end|>"), _turns(
        "{{ '<|' + message.role + '|>\\n' }}", "{{ '<|end|>\\n' }}", "{{ '<|assistant|>\\n' }}")),
    BuiltIn("Llama 2", ("[INST]", "[/INST]"), _LLAMA2),
    BuiltIn("a dialogue", (), _turns(_PLAIN, "{{ '\\n' }}", "Assistant:"), stop=("\nUser:", "\nSystem:")),
)  # fmt: skip


def choose(tokenizer: Tokenizer) -> BuiltIn:
    """The first whose control tokens the vocabulary has."""
    return next(b for b in BUILT_IN if all(tokenizer.token(text) is not None for text in b.needs))
