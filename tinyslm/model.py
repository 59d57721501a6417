"""Loading a model, and the methods that a user calls."""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np

from . import backends, builtin, hub, models, tokenizer
from .backends.base import Weights
from .backends.threads import default_threads
from .chat.template import ChatTemplate
from .config import Keys
from .engine import Engine
from .errors import FileError, OptionError, PromptTooLongError
from .gguf import GGUF
from .lowered import STEP
from .ops import Op
from .sampler import Sampler
from .sampling import Sampling
from .scheduler import GenerateRequest, Kept, LogitsRequest, Piece, Scheduler
from .tokenizer import Tokenizer

_LIVE: weakref.WeakSet[Model] = weakref.WeakSet()
UNLIMITED = 1 << 24  # tokens; no context is longer


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    context: int | None = None,
    backend: str | None = None,
    kv: str = "f16",
    chunk: int | None = None,
    activations: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Model:
    """Open a GGUF file and load its weights.

    path: a file; "hf:REPO" or "hf:REPO:QUANT", a model of the Hugging Face hub, downloaded unless its cache has it;
    None, the built-in model.
    threads: None takes TINYSLM_THREADS, or the physical cores that this process may use. context: tokens that a
    sequence can hold; None is the file's own; memory is taken as it is used. backend: "native", "numba" or
    "reference"; None takes TINYSLM_BACKEND, or the fastest there is. kv: "f16", or "q8_0", which keeps keys and values
    in 9 bits instead of 16 (not on numba). chunk: most tokens in a step; None is 512, or fewer where a model's
    values would take much memory. activations: None, rounded to int8 as the kernels have it; to measure what that
    costs, on the numba backend, 0 leaves them float32, and N rounds them in blocks of N where they meet quantised
    weights. progress: called with the share of the weights that is loaded, 0 to 1.

    Raises FileError for a file that is missing or broken, UnsupportedError for one that needs what is not built,
    OptionError and BackendError for options that cannot be met, HubError where the hub does not give the model.
    """
    if path is None:
        path = builtin.path()
    elif isinstance(path, str) and path.startswith(hub.PREFIX):
        path = hub.fetch(path)
    return Model(path, threads=threads, context=context, backend=backend, kv=kv, chunk=chunk, activations=activations,
                 progress=progress)  # fmt: skip


class Stream:
    """The pieces of one answer, as an iterator. prompt_tokens: ids of the prompt; seed: of its draws."""

    def __init__(
        self, request: GenerateRequest, pieces: Generator[Piece, None, None], cancel: Callable[[], None]
    ) -> None:
        self._request, self._pieces, self._cancel = request, pieces, cancel
        self.prompt_tokens, self.seed = len(request.ids), request.sampler.seed

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    @property
    def reused(self) -> int:
        """Ids of the prompt that the KV cache held already; known with the first piece."""
        return self._request.reused

    @property
    def drawn(self) -> int:
        """Tokens drawn so far, an end token among them."""
        return self._request.drawn

    @property
    def finish(self) -> str:
        """Why it ended: "end" (token), "stop" (text), "length" (max_tokens), "context" (full); empty while it runs."""
        return self._request.finish

    def close(self) -> None:
        """Cancel what is left. From any thread: one that waits for a piece gets CancelledError."""
        self._cancel()
        with suppress(ValueError):  # that other thread is in the generator, and ends it
            self._pieces.close()


class Model:
    """A loaded model. Any number of threads may use it; what they ask for at the same time runs together."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        context: int | None = None,
        backend: str | None = None,
        kv: str = "f16",
        chunk: int | None = None,
        activations: int | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self._options = {"threads": threads, "context": context, "backend": backend, "kv": kv, "chunk": chunk,
                         "activations": activations}  # fmt: skip
        self.backend = backends.choose(backend, activations)
        self.threads = default_threads() if threads is None else _integer("threads", threads, 1, 1024)
        if chunk is not None:
            _integer("chunk", chunk, 1, 1 << 16)
        wanted = None if context is None else _integer("context", context, 1, 1 << 24)
        with GGUF.open(self.path) as file:
            program = models.build(Keys(self.path, file.metadata), file_tensors(file), wanted)
            self.file_bytes, self.vocab_size = file.size, program.vocab
            self.context = self._context(wanted, program.context)
            with ThreadPoolExecutor(1) as other:  # the tokenizer is built while C packs the weights
                future = other.submit(tokenizer.load, file.metadata, self.path)
                made = backends.make(self.backend, program, Weights(file), self.threads, chunk, progress, kv,
                                     activations)  # fmt: skip
                try:
                    self.tokenizer: Tokenizer = future.result()
                    if self.tokenizer.vocab_size != program.vocab:
                        raise FileError(self.path, "the vocabulary has not as many tokens as the embedding has rows",
                                        expected=program.vocab, got=self.tokenizer.vocab_size)  # fmt: skip
                    self.template = ChatTemplate(file.metadata, self.tokenizer, self.path)
                except BaseException:
                    made.close()
                    raise
            # a step over one token reads every weight once, but of the embedding one row
            self.step_bytes = sum(_bytes_read(op, file) for op in program.ops)
        self.page_bytes = made.page_bytes
        self.isa: str | None = getattr(made, "isa", None)
        self.chunk: int = getattr(made, "rows", STEP) if chunk is None else chunk
        self._scheduler = Scheduler(Engine(program, made), self.chunk)
        _LIVE.add(self)

    def _context(self, wanted: int | None, own: int) -> int:
        if wanted is None:
            return own
        if wanted > own:
            warnings.warn(f"context {wanted} is beyond the {own} tokens that the model was made for", stacklevel=4)
        return wanted

    # ---- text ----

    @overload
    def generate(self, prompt: str, **options: Any) -> str: ...
    @overload
    def generate(self, prompt: Sequence[str], **options: Any) -> list[str]: ...
    def generate(self, prompt: str | Sequence[str], **options: Any) -> str | list[str]:
        """The text that follows a prompt; of a list, of each, run together.

        Options and defaults: max_tokens=64, temperature=0.8 (0 takes the most likely token), top_k=40, top_p=0.95,
        min_p=0.05, typical_p=1.0, repeat_penalty=1.0, frequency_penalty=0.0, presence_penalty=0.0, logit_bias=None
        (token id to what is added to its logit), seed=None (prompt i of a list draws with seed + i), stop=[] (texts
        that end the answer, not part of it), ignore_eos=False (go on past the end token).

        Raises PromptTooLongError, OptionError, NonFiniteError, ClosedError; CancelledError where the model is closed
        meanwhile.
        """
        if not isinstance(prompt, Iterable):
            raise OptionError(f"a prompt is a str, or prompts a list of them, not {type(prompt).__name__}")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        requests = [self._request(self._encoded(text), i, False, options) for i, text in enumerate(prompts)]
        texts = self._texts(requests)
        return texts[0] if isinstance(prompt, str) else texts

    def _texts(self, requests: list[GenerateRequest]) -> list[str]:
        for request in requests:
            request.unread = True
        try:
            self._scheduler.submit(*requests)
            return ["".join(piece.text for piece in r.results()) for r in requests]
        except BaseException:
            self._scheduler.cancel(*requests)
            raise

    def stream(self, prompt: str, *, logprobs: bool = True, **options: Any) -> Stream:
        """The pieces of the text as they come: piece.text, piece.token, piece.logprob. Options as for generate.

        logprobs=False saves the sum over the vocabulary that a log probability takes; piece.logprob is None then.
        Closing the stream, or leaving its loop, cancels the request.
        """
        return self._stream(self._request(self._encoded(prompt), 0, logprobs, options))

    def _stream(self, request: GenerateRequest) -> Stream:
        return Stream(request, self._pieces(request), lambda: self._scheduler.cancel(request))

    def _pieces(self, request: GenerateRequest) -> Generator[Piece, None, None]:
        done = False
        try:
            self._scheduler.submit(request)
            yield from request.results()
            done = True
        finally:
            if not done:
                self._scheduler.cancel(request)

    # ---- chat ----

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None, **options: Any,
    ) -> str:  # fmt: skip
        """The assistant's next message, laid out and ended as the file's chat template has it.

        messages: as OpenAI's API has them, {"role": "user", "content": "..."}; content may be a list of
        {"type": "text", "text": "..."}. What stands in them stays text, also where it spells a control token. tools:
        passed to the template. variables: what else it knows, {"enable_thinking": False} say. Options as for generate,
        but max_tokens, which is what the context has room for.

        Raises ChatTemplateError, and what generate raises.
        """
        return self._texts([self._chat_request(messages, tools, variables, False, options)])[0]

    def stream_chat(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None, **options: Any,
    ) -> Stream:  # fmt: skip
        """The pieces of the assistant's next message as they come. Arguments as for chat; see stream."""
        return self._stream(self._chat_request(messages, tools, variables, True, options))

    def _chat_request(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any] | None, logprob: bool, options: dict[str, Any],
    ) -> GenerateRequest:  # fmt: skip
        parts = self.template.render(messages, tools, variables).parts(self.tokenizer)
        ids = [i for part in parts for i in ([part] if isinstance(part, int) else self.tokenizer.encode_part(part))]
        return self.answer_request(ids, logprob, options)

    def answer_request(
        self, ids: list[int], logprob: bool, options: Mapping[str, Any], kept: Kept | None = None
    ) -> GenerateRequest:
        """A request for what follows the ids of a template's prompt, on a kept sequence if there is one.

        The answer's first space is its own unless it stands right after a token, where encoding would put one.
        """
        stops = _stops(options.get("stop", ())) + self.template.stop
        continues = not ids or not self.tokenizer.is_special(ids[-1])
        return self._request(ids, 0, logprob, {"max_tokens": UNLIMITED, **options, "stop": stops}, continues, kept)

    def _encoded(self, prompt: str) -> list[int]:
        if not isinstance(prompt, str):
            raise OptionError(f"a prompt is a str, not {type(prompt).__name__}")
        return self.tokenizer.encode(prompt)

    def _request(
        self, prompt: list[int], number: int, logprob: bool, options: Mapping[str, Any], continues: bool = True,
        kept: Kept | None = None,
    ) -> GenerateRequest:  # fmt: skip
        """A request from the options of generate for what follows the ids of a prompt."""
        ids, ends, sampling = self._checked(prompt), self.tokenizer.eog, dict(options)
        stops, seed = _stops(sampling.pop("stop", ())), sampling.pop("seed", None)
        max_tokens = _integer("max_tokens", sampling.pop("max_tokens", 64), 1, UNLIMITED)
        ignore_eos = sampling.pop("ignore_eos", False)
        try:
            if ignore_eos:
                sampling["logit_bias"] = {**(sampling.get("logit_bias") or {}), **dict.fromkeys(ends, -np.inf)}
            params = Sampling(seed=None if seed is None else seed + number, **sampling)
        except TypeError as error:
            raise OptionError(str(error).replace("Sampling.__init__()", "generate")) from None
        return GenerateRequest(
            ids, Sampler(params, self.vocab_size), self.tokenizer.stream(continues=continues), ends, stops, max_tokens,
            self.context, logprob, kept,
        )  # fmt: skip

    # ---- numbers ----

    def logits(self, ids: Sequence[int], last: int | None = None) -> np.ndarray:
        """The logits at each of the ids, or at the last ones: float32 (len(ids) or last, vocabulary).

        Raises PromptTooLongError, OptionError for an id outside the vocabulary or no ids at all, NonFiniteError.
        """
        checked = self._checked([_integer("token id", i, 0, self.vocab_size - 1) for i in ids])
        rows = len(checked) if last is None else _integer("last", last, 1, len(checked))
        out = np.empty((rows, self.vocab_size), np.float32)
        request = LogitsRequest(checked, out)
        try:
            self._scheduler.submit(request)
            for _ in request.results():
                pass
        except BaseException:
            self._scheduler.cancel(request)
            raise
        return out

    def _checked(self, ids: list[int]) -> list[int]:
        if not ids:
            raise OptionError("the prompt is empty, and this model has no token that begins a text")
        if len(ids) > self.context:
            raise PromptTooLongError(len(ids), self.context)
        return ids

    # ---- life ----

    def close(self) -> None:
        """Free all memory; requests that are running end with CancelledError."""
        self._scheduler.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # at the end of the process its threads are gone or frozen in a step: nothing can be waited for or taken away
        if hasattr(self, "_scheduler") and not sys.is_finalizing():
            self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return _unpickle, (str(self.path), self._options)


def _unpickle(path: str, options: dict[str, Any]) -> Model:
    return Model(path, **options)


def file_tensors(file: GGUF) -> models.Tensors:
    def floats(name: str) -> np.ndarray:
        tensor = file.tensors[name]
        return tensor.format.dequantise(file.read(tensor)).ravel()

    return models.Tensors(file.path, file.tensors, floats)


def _bytes_read(op: Op, file: GGUF) -> int:
    """Bytes of weights that one token's step reads for an op."""
    if op.kind in ("embed", "position"):
        return 0
    sizes = [w.n * file.tensors[w.name].row_bytes if w.k else 4 * w.n for w in op.weights()]
    return sum(sizes) * op.used // len(sizes) if op.experts else sum(sizes)


def _stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Iterable) else (stop,)
    if not all(isinstance(s, str) and s for s in stops):
        raise OptionError(f"stop={stop!r}: must be texts that are not empty")
    return stops


def _integer(name: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not low <= value <= high:
        raise OptionError(f"{name}={value!r}: must be a number from {low} to {high}")
    return int(value)


def _after_fork() -> None:
    for model in list(_LIVE):
        model._scheduler.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
