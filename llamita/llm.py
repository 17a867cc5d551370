"""Text in, text out: what is asked of a text becomes a GenerationRequest, and what was written a Completion."""

import os
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Never, Unpack, overload

import torch

from llamita.checkpoint.load import Loaded
from llamita.errors import UnsupportedError, UsageError
from llamita.generation import text_options
from llamita.generation.completion import Completion, Stream, completion_of
from llamita.generation.decode import note_prompts
from llamita.generation.plan import plan
from llamita.generation.prefix_cache import Prefix
from llamita.generation.run import Run
from llamita.generation.text_options import Prompt, TextModel, TextOptions, Watch
from llamita.model import plan as plans
from llamita.model.fingerprint import fingerprint
from llamita.model.llama import LlamaForCausalLM
from llamita.tokenizer.chat import Message, encode_chat

if TYPE_CHECKING:
    from llamita.engine.engine import Engine
    from llamita.engine.limits import EngineLimits

MOST_AT_ONCE = 32  # of many prompts
Tool = Mapping[str, Any]


class LLM:
    """A model that reads and writes text.

    draft: a smaller model of the same tokens that drafts ahead; a completion's `acceptance` tells how well. A text
    that is watched, given a prefix or has its logprobs noted is written token by token. adapters: the same model with
    an adapter, by the names that requests of the `engine` give. `llamita.load` makes one; raises UsageError without it.
    """

    def __init__(
        self,
        loaded: Loaded | None = None,
        draft: LlamaForCausalLM | None = None,
        adapters: Mapping[str, Loaded] = MappingProxyType({}),
        **others: Never,
    ) -> None:
        if not isinstance(loaded, Loaded) or others:
            raise UsageError('llamita.load makes an LLM: llamita.load("org/name").generate("Once upon a time")')
        _use_one_thread_after_forks()
        self.model, self.tokenizer, self.name = loaded.model, loaded.tokenizer, loaded.name
        self.draft, self.adapter, self.adapters = draft, loaded.adapter, tuple(adapters)
        self._is_sharded = "tensor" in plans.active(loaded.model)
        self._texts = TextModel(loaded.model, loaded.tokenizer, draft=draft, adapter=loaded.adapter)
        self._texts.adapters = {
            name: TextModel(one.model, one.tokenizer, adapter=one.adapter, shared_tables=self._texts.tables)
            for name, one in adapters.items()
        }

    def __repr__(self) -> str:
        size = f"{self.model.num_parameters():,} parameters"
        return f"LLM({self.name!r}, {size}, {str(self.model.dtype).removeprefix('torch.')}, {self.model.device})"

    @property
    def context_length(self) -> int:
        """The most tokens that a prompt and its continuation have together."""
        return self._texts.context_length

    # A str is also a sequence of str: the first signature is meant to win.
    @overload
    def generate(self, prompt: str, **options: Unpack[TextOptions]) -> Completion: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def generate(self, prompt: Sequence[Prompt], **options: Unpack[TextOptions]) -> list[Completion]: ...
    @overload
    def generate(self, prompt: Sequence[int], **options: Unpack[TextOptions]) -> Completion: ...

    def generate(
        self, prompt: Prompt | Sequence[Prompt], **options: Unpack[TextOptions]
    ) -> Completion | list[Completion]:
        """Continue a text, or several at once, each as if it were alone.

        Raises UsageError for an empty prompt, for one that fills the context, and for wrong options.
        """
        found, is_one = text_options.prompts_of(prompt)
        prompts = [self._ids(one) for one in found]
        options = text_options.checked(options)
        if not prompts:
            return []
        has_engine = self.draft is None and not self._is_sharded
        if len(prompts) > 1 and has_engine and text_options.are_of_engine(options, self.model.config):
            return self._together(prompts, options)
        is_search = (options.get("num_beams") or 1) > 1  # which has one limit, and prompts have several
        if len(prompts) > 1 and (is_search or self._is_sharded):
            each = text_options.of_rows(options, len(prompts))
            return [self.generate(ids, **own) for ids, own in zip(prompts, each, strict=True)]
        run = self._run(prompts, options, True, None, None, is_private=True)
        with torch.no_grad():  # once, rather than at every step
            for _ in run.steps:
                pass
        completions = [completion_of(sequence, acceptance=run.acceptance) for sequence in run.sequences]
        return completions[0] if is_one else completions

    def stream(
        self,
        prompt: Prompt,
        *,
        prefix: Prefix | None = None,
        watch: Watch | None = None,
        **options: Unpack[TextOptions],
    ) -> Stream:
        """Continue a text, piece by piece.

        `prefix` keeps what was read for the next text that begins alike, `watch` sees every step.
        """
        return Stream(self._run([self._ids(prompt)], options, True, prefix, watch))

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        continue_final_message: bool = False,
        **options: Unpack[TextOptions],
    ) -> Completion:
        """Answer a conversation: messages of role and content, in the checkpoint's own chat format.

        tools: functions that may be called, as templates get them; the answer's `tool_calls` are its calls of them,
        and the option grammar=tool_calls.grammar(tools) lets it be nothing else.
        continue_final_message: the last message is the beginning of the answer, which goes on from it.
        Raises UsageError where the checkpoint has no chat template, nor the control tokens of a format of Llama's.
        """
        stream = self.stream_chat(messages, tools=tools, continue_final_message=continue_final_message, **options)
        return stream.whole()

    def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        continue_final_message: bool = False,
        prefix: Prefix | None = None,
        watch: Watch | None = None,
        **options: Unpack[TextOptions],
    ) -> Stream:
        """Answer a conversation, piece by piece; the arguments are those of `chat` and `stream`."""
        to_read = encode_chat(self.tokenizer, messages, tools=tools, continue_final_message=continue_final_message)
        names = tuple(str(tool.get("function", tool).get("name")) for tool in tools or ())
        return Stream(self._run([self._ids(to_read)], options, continue_final_message, prefix, watch), names)

    def engine(self, limits: "EngineLimits | None" = None) -> "Engine":
        """An engine that writes many texts at once: `with llm.engine() as engine: engine.submit("Once upon")`.

        Of a model that several processes share, the first one calls this and the others `follow`. Raises
        UnsupportedError where it is not shared by all processes, or this is not the first.
        """
        from llamita.engine.engine import Engine

        if not self._is_sharded:
            return Engine(self._texts, limits, name=self.name)
        from llamita.parallel import followers

        self._check_shared(is_first=True)
        others = followers.lead()
        try:
            return Engine(self._texts, limits, name=self.name, followers=others)
        except BaseException:
            others.close()
            raise

    def follow(self) -> None:
        """Run in this process what the engine of the first one runs, of a model that they share, until it is closed.

        Raises UnsupportedError where there is nothing to follow, and LostProcess where the first process dies.
        """
        self._check_shared(is_first=False)
        from llamita.engine import follower
        from llamita.parallel.followers import follow

        follower.run(self.model, follow())

    def _check_shared(self, *, is_first: bool) -> None:
        from llamita.parallel import mesh

        if plans.processes_of(self.model) != mesh.world_size() or mesh.is_first() != is_first:
            raise UnsupportedError(
                "an engine runs in the first of the processes that share a model, and the others follow it: shard the "
                "model over all processes, and call llm.engine() in the first and llm.follow() in the others"
            )

    def new_prefix(self) -> Prefix:
        """An empty `prefix` for `stream` and `stream_chat`."""
        return Prefix(self.model.config.num_hidden_layers)

    def save_prefix(self, path: str | Path, prefix: Prefix) -> None:
        """Write what a prefix has read to a file. Raises UsageError where that is nothing, and the disk's errors."""
        prefix.save(Path(path), fingerprint=fingerprint(self.model))

    def load_prefix(self, path: str | Path) -> Prefix:
        """A prefix from a file of `save_prefix`. Raises UsageError for another model's, and the files' errors."""
        layers, own = self.model.config.num_hidden_layers, fingerprint(self.model)
        return Prefix.load(Path(path), layers=layers, fingerprint=own, device=self.model.device)

    def _together(self, prompts: list[list[int]], options: TextOptions) -> list[Completion]:
        """Write after several prompts by an engine; without a seed, seeds are drawn from torch's global generator."""
        from llamita.engine.limits import EngineLimits

        if options.get("seed") is None:
            options = {**options, "seed": torch.randint(2**62, (len(prompts),), device="cpu").tolist()}
        each = text_options.of_rows(options, len(prompts))
        limits = EngineLimits(max_num_seqs=min(len(prompts), MOST_AT_ONCE), max_num_queued=len(prompts))
        with self.engine(limits) as engine:
            handles = [engine.submit(ids, **own) for ids, own in zip(prompts, each, strict=True)]
            return [handle.result() for handle in handles]

    def _run(
        self,
        prompts: list[list[int]],
        options: TextOptions,
        reads_on: bool,
        prefix: Prefix | None,
        watch: Watch | None,
        is_private: bool = False,
    ) -> Run:
        """The run that continues the prompts; `reads_on`: its text goes on from theirs, without a break."""
        request = self._texts.request(prompts, options, reads_on=reads_on, prefix=prefix, watch=watch)
        request.is_private = is_private
        run = plan(request)
        note_prompts(request, run.sequences)
        return run

    def _ids(self, prompt: Prompt) -> list[int]:
        return self._texts.token_ids(prompt)


@cache
def _use_one_thread_after_forks() -> None:
    """A forked process has none of OpenMP's threads, and a call that uses several would wait for them for ever."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))
