"""From messages to the ids of a prompt, by the chat template of the model's file.

`messages` checks what the caller gives; `template` chooses the template and has it rendered by `worker`, a process of
its own, where `sandbox` and `text` keep apart what the template wrote and what it was given. Nothing here needs the
weights.
"""
