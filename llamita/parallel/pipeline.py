"""Pipeline parallelism: micro-batches go through the stages of a model, several at once.

Schedules and messages are torch.distributed.pipelining's. Only hidden states and their gradients are sent: every stage
reads the same batch, and so knows positions and targets.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh

from llamita.errors import UsageError
from llamita.model.llama import LlamaForCausalLM
from llamita.parallel.context import pass_of
from llamita.parallel.gradients import Gradients, scale_down
from llamita.parallel.mesh import dim
from llamita.parallel.placements import TOKENS
from llamita.parallel.shard import Pass, align_gradient, local, whole
from llamita.parallel.slices import joined, own_part
from llamita.parallel.stages import Received, cut, tied_weight, view

# The names of schedules, here and in torch. gpipe: all forward passes first (arXiv:1811.06965). 1f1b: a backward pass
# after each forward pass, with activations of at most as many micro-batches as stages in memory (arXiv:1806.03377).
# interleaved: the same, and each process has several stages, so that it waits less (arXiv:2104.04473).
PP_SCHEDULES: Mapping[str, str] = {"1f1b": "1F1B", "gpipe": "GPipe", "interleaved": "Interleaved1F1B"}

T = TypeVar("T")


class Rows(Protocol):
    """As much of a micro-batch as a stage reads: tokens and positions (B, T)."""

    @property
    def inputs(self) -> Tensor:
        """The token ids."""
        ...

    @property
    def positions(self) -> Tensor:
        """Where each token stands in its document."""
        ...

    def __len__(self) -> int: ...

    def padded(self, rows: int) -> Any:
        """With rows that learn nothing."""
        ...


@dataclass(frozen=True)
class Work:
    """What the stages do next: `compute(model, part)` of each part, in the context that `around(number)` gives."""

    compute: Callable[..., Tensor]
    parts: Sequence[Rows]
    around: Callable[[int], AbstractContextManager[object]]


class Stage(nn.Module):
    """A stage's pass over one micro-batch: from the hidden states of the stage before to its own, or to the loss."""

    def __init__(self, whole_pass: Pass, stage: int, count: int, mesh: DeviceMesh) -> None:
        super().__init__()
        self.whole_pass, self.stage, self.count = whole_pass, stage, count
        self.tensor, context = dim(mesh, "tp"), dim(mesh, "cp")
        self.columns = 1 if context is None else context.size()
        self.work: Work | None = None

    @property
    def model(self) -> LlamaForCausalLM:
        """The model, of which this stage has its part."""
        return cast("LlamaForCausalLM", self.whole_pass.model)

    @property
    def dtype(self) -> torch.dtype:
        """Of hidden states between stages: that of the weights, also under autocast."""
        return next(self.model.parameters()).dtype

    @property
    def is_last(self) -> bool:
        """Whether the loss is computed here."""
        return self.stage == self.count - 1

    def forward(self, received: Tensor, number: Tensor) -> Tensor:
        """Hidden states (B, T, D) of this process to such; in the last stage, what the work computes.

        number: (1,), that of the micro-batch. Under tensor parallelism T are the tokens that this process keeps.
        """
        work = self.work
        assert work is not None, "the pipeline says what to do before it starts"
        part = work.parts[int(number)]
        with work.around(int(number)):
            if isinstance(embedding := self.model.model.embed_tokens, Received):
                torch.manual_seed(torch.initial_seed() + self.stage)  # other dropout than in the stages before
                embedding.put(self._joined(received, part))
            if self.is_last:
                return _own(whole(self.whole_pass(work.compute, part)))
            return _own(local(self.whole_pass(_hidden_states, part)).to(self.dtype).contiguous())

    def shape(self, part: Rows) -> torch.Size:
        """The shape of the hidden states of a micro-batch: (B, T, D)."""
        rows, length = part.inputs.shape
        return torch.Size((rows, length // self.columns, self.model.config.hidden_size))

    def example(self, part: Rows) -> Tensor:
        """What is sent of a micro-batch: hidden states (B, T, D), without memory."""
        states = torch.empty(self.shape(part), dtype=self.dtype, device="meta")
        if self.tensor is not None:
            states = own_part(states, self.tensor, [TOKENS])
        return torch.empty(states.shape, dtype=self.dtype, device="meta", requires_grad=True)

    def _joined(self, received: Tensor, part: Rows) -> Tensor:
        """What was received as the layers read it: under tensor parallelism the tokens of all its processes."""
        if self.tensor is None:
            return received
        return joined(received, self.tensor, [TOKENS], self.shape(part))


class Pipeline:
    """The stages of a model on the processes of the `pp` dim, and the way of micro-batches through them.

    With several stages a process, its first ones come before the second ones of all others.
    """

    def __init__(self, model: LlamaForCausalLM, mesh: DeviceMesh, schedule: str, *, stages_each: int = 1) -> None:
        """Cuts the model, which is whole; FSDP2 may then shard each of `roots`. schedule: one of PP_SCHEDULES."""
        own = mesh["pp"]
        self.model, self.schedule = model, schedule
        self.group, self.rank, self.size = own.get_group(), own.get_local_rank(), own.size()
        tied = tied_weight(model)
        self.is_tied = tied is not None and tied.requires_grad
        count = self.size * stages_each
        stages = range(self.rank, count, self.size)
        cut(model, stages, count)
        views = [pass_of(view(model, stage, count), dim(mesh, "cp")) for stage in stages]
        self.roots = [Stage(one, stage, count, mesh) for one, stage in zip(views, stages, strict=True)]
        self._schedules: dict[Any, Any] = {}

    def train(
        self,
        compute: Callable[..., Tensor],
        parts: Sequence[Rows],
        around: Callable[[int], AbstractContextManager[object]],
    ) -> list[float]:
        """The losses that `compute(model, part)` gives, on every stage, with their gradients added to `.grad`.

        around: the context of a part's pass, by its number.
        """
        work, found = Work(compute, _even(parts), around), list[Tensor]()
        schedule, numbers = self._made(work.parts), torch.arange(len(work.parts))
        given = (numbers,) if self.rank == 0 else ()
        with self._doing(work):
            try:
                schedule.step(*given, number=numbers, target=numbers, losses=found, return_outputs=False)
            except RuntimeError as error:
                raise error.__cause__ or error from None  # torch wraps what a pass raises, and shows its arguments
        losses = torch.empty(len(work.parts), dtype=torch.float64)
        if found:
            losses.copy_(torch.stack(found))
        distributed.broadcast(losses, src=self.rank_of(self.size - 1), group=self.group)
        return losses.tolist()

    @torch.no_grad()
    def measure(self, compute: Callable[..., Tensor], part: Rows) -> Tensor:
        """What `compute(model, part)` returns, on every stage, without gradients."""
        number, out = torch.zeros(1, dtype=torch.long), torch.empty(0)
        with self._doing(Work(compute, [part], lambda number: nullcontext())):
            for root in self.roots:
                out = root(number if root.stage == 0 else self._sent(root, part), number)
                if not root.is_last:
                    distributed.send(out, self.rank_of(root.stage + 1), group=self.group)
        return torch.tensor(self._from_last(out.tolist()), dtype=torch.float64)

    @property
    def tied(self) -> Tensor | None:
        """The weight of the embedding, which first and last stage both train where the head shares it."""
        return self.model.model.embed_tokens.weight if self.is_tied else None

    @property
    def is_twin(self) -> bool:
        """Whether this process's `tied` is a copy of that of the first stage's process."""
        return self.is_tied and self.rank == self.size - 1

    def rank_of(self, stage: int) -> int:
        """The process of a stage whose other coordinates are those of this one."""
        return distributed.get_global_rank(self.group, stage % self.size)

    @contextmanager
    def _doing(self, work: Work) -> Iterator[None]:
        """Tell all stages of this process what to do."""
        for root in self.roots:
            root.work = work
        try:
            yield
        finally:
            for root in self.roots:
                root.work = None

    def _sent(self, root: Stage, part: Rows) -> Tensor:
        """The hidden states that the stage before sends."""
        received = torch.empty(root.example(part).shape, dtype=root.dtype, device=self.model.device)
        distributed.recv(received, self.rank_of(root.stage - 1), group=self.group)
        return received

    def _made(self, parts: Sequence[Rows]) -> Any:
        """torch's schedule for micro-batches of this number and shape; its buffers are kept for the next time."""
        key = (len(parts), parts[0].inputs.shape)
        if key not in self._schedules:
            from torch.distributed.pipelining.schedules import (  # here, as it loads torch's compiler
                PipelineScheduleSingle,
                get_schedule_class,
            )

            kind: Any = get_schedule_class(PP_SCHEDULES[self.schedule])
            stages = [self._staged(root, parts[0]) for root in self.roots]
            given: Any = stages[0] if issubclass(kind, PipelineScheduleSingle) else stages
            self._schedules[key] = kind(
                given, n_microbatches=len(parts), loss_fn=lambda output, target: output, scale_grads=False
            )
        return self._schedules[key]

    def _staged(self, root: Stage, part: Rows) -> Any:
        """torch's stage of one of this process's, for micro-batches of the shape of a part."""
        from torch.distributed.pipelining import PipelineStage

        example, number = root.example(part), torch.zeros(1, dtype=torch.long)
        given, loss = (number if root.stage == 0 else example), torch.zeros((), device="meta")
        return PipelineStage(
            root, root.stage, root.count, self.model.device, group=self.group,
            input_args=given, output_args=loss if root.is_last else example,
        )  # fmt: skip

    def _from_last(self, found: T) -> T:
        """What the process of the last stage has found, in all of them."""
        box = [found]
        source = self.rank_of(self.size - 1)
        distributed.broadcast_object_list(box, src=source, group=self.group, device=torch.device("cpu"))
        return box[0]


class StageGradients(Gradients):
    """Gradients of a model in stages: each process has those of its own weights."""

    def __init__(self, weights: Sequence[Tensor], pipeline: Pipeline) -> None:
        super().__init__(weights)
        self.pipeline = pipeline

    def accumulate(
        self,
        root: nn.Module,
        compute: Callable[..., Tensor],
        parts: Sequence[Any],
        around: Callable[[int], AbstractContextManager[object]],
    ) -> list[float]:
        """Send the micro-batches through the stages; returns their losses, on every stage."""
        return self.pipeline.train(compute, parts, around)

    def finish(self) -> None:
        """Add the two gradients of a tied weight: of the embedding in the first stage, of the head in the last."""
        pipeline, weight = self.pipeline, self.pipeline.tied
        if weight is None or pipeline.rank not in (0, pipeline.size - 1):
            return
        assert weight.grad is not None, "both stages compute with the tied weight"
        own = align_gradient(weight)
        other, peer = torch.empty_like(own), pipeline.rank_of(pipeline.size - 1 - pipeline.rank)
        messages = [(distributed.isend, own), (distributed.irecv, other)]
        ops = [distributed.P2POp(kind, tensor, peer, group=pipeline.group) for kind, tensor in messages]
        for work in distributed.batch_isend_irecv(ops):
            work.wait()
        own.add_(other)

    def clip(self, most: float) -> float:
        """Scale the gradients of all stages down to a norm of at most `most`; returns the norm of before."""
        skipped = self.pipeline.tied if self.pipeline.is_twin else None
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        counted = [weight.grad for weight in self.weights if weight.grad is not None and weight is not skipped]
        square = torch.tensor(float(whole(nn.utils.get_total_norm(counted))) ** 2, dtype=torch.float64)
        distributed.all_reduce(square, group=self.pipeline.group)
        norm = square.sqrt()
        scale_down(gradients, norm, most)
        return float(norm)


def check_micro_batches(count: int, pp: int, schedule: str, *, rows: int) -> None:
    """Raise UsageError where a schedule does not know what to do with the micro-batches of a step.

    rows: of a process in a step.
    """
    if pp > 1 and schedule == "1f1b" and count < pp:
        most = rows // pp
        remedy = f"set --micro-rows to {most}" if most else f"raise --batch-tokens so that it has {pp} rows"
        raise UsageError(
            f"--pp {pp} by the schedule 1f1b needs {pp} micro-batches in a step, and there are {count}: {remedy}, "
            "or take --pp-schedule gpipe"
        )
    if pp > 1 and schedule == "interleaved" and count % (rounds := max(1, count // pp)):
        raise UsageError(
            f"--pp {pp} by the schedule interleaved takes {count // rounds} micro-batches at once, and {count} in a "
            f"step are no multiple: set --batch-tokens and --micro-rows so that they are {pp * rounds}, or take "
            "--pp-schedule 1f1b"
        )


def _hidden_states(model: LlamaForCausalLM, part: Rows) -> Tensor:
    """What a stage gives of a micro-batch: (B, T, D)."""
    out = model.model(part.inputs, position_ids=part.positions, use_cache=False, return_dict=True)
    return out.last_hidden_state


def _own(given: Tensor) -> Tensor:
    """What a stage gives, in memory of its own: FSDP2 warns of views, and what comes of a DTensor is one."""
    return given.clone() if given._is_view() else given


def _even(parts: Sequence[Rows]) -> list[Rows]:
    """Micro-batches of one size, as the messages are: one that has fewer rows gets some that learn nothing."""
    most = max(map(len, parts))
    return [part if len(part) == most else part.padded(most) for part in parts]
