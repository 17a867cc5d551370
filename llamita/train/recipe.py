"""A recipe: every number that decides what a run computes, and which of them go together."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import prod

from llamita.adapters.config import ALL_LINEAR, LoraConfig
from llamita.checks import MOST_THREADS, quoted
from llamita.data.cleaning import parsed_steps
from llamita.errors import UsageError
from llamita.parallel.mesh import Degrees
from llamita.parallel.pipeline import PP_SCHEDULES
from llamita.tokenizer.train import SMALLEST
from llamita.train.method import METHODS
from llamita.train.optim import OPTIMIZERS, RATES
from llamita.train.rates import parsed_rates, rate_of_trained
from llamita.train.schedule import SCHEDULES
from llamita.train.tasks import TASKS, TOKEN_TASKS, Task, TaskOptions
from llamita.train.tasks.dpo import LOSSES

ROLLOUTS = ("exact", "plain")
PRECISIONS = ("auto", "fp32", "bf16")
WEIGHTS = ("fp32", "bf16")
RECOMPUTE = ("none", "selective", "full")
OPTIMIZER_STEPS = ("after", "in-backward")
OFFLOAD = ("none", "activations", "optimizer", "both")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train, on what and how. A step reads `batch_tokens` tokens in rows of `length`.

    data: files; none are the docstrings of this Python. model: a checkpoint to start from; without one, `shape` is
    started at random, with the tokenizer of `tokenizer`, or with "new" one of `vocab_size` tokens, which is trained on
    the data. steps: None are as many as `minutes` allow. threads: None are as many as are fastest.
    lr: None is the optimizer's own default; of a checkpoint, that of its size (`rate_of_trained`).
    clean: steps of `llamita.data.cleaning` that the data goes through, with commas.
    warmup, held_out: shares of the steps and of the documents.
    method: all weights (full), or an adapter: `rank`, `alpha`, `targets` (names or globs, commas between them) and
    `rslora` are its LoraConfig; qlora has the frozen weights in blocks of `base_format`. merge: also write the model
    with the adapter in its weights.
    rates: shares of the rate for weights by their names, as "GLOB=SHARE,GLOB=SHARE" (see `rates`).
    z_loss: of pretrain and sft, how many times the square of log Z is added to the loss.
    loss, beta, label_smoothing, reference_free, reward, group, max_tokens, kl: of the tasks dpo and grpo, see
    `llamita.train.tasks.task.TaskOptions`. rollouts: exact (sampled by the trainer's arithmetic) or plain (faster).
    weights: fp32, or bf16 with fp32 copies that the optimizer moves. recompute: what layers compute again in the
    backward pass, in every `recompute_every`-th. offload: what waits in the CPU's memory.
    optimizer_step: after the backward pass, or for each weight in it. clip: 0 clips nothing.
    exact_scaling: 1, 2, 4, ... processes give the same bits. tp: processes that share each matrix. cp: those
    that share each row. pp: those that have stages of layers, one each, or `pp_stages` by the schedule interleaved;
    pp_schedule: the order of micro-batches in the stages. The rest share the rows of a batch.
    micro_rows: rows of one forward pass; gradients of several are summed. evaluate_every, save_every: in steps.
    keep_checkpoints: how many of the newest stay.
    Raises UsageError for a value that is impossible, with the reason.
    """

    data: tuple[str, ...] = ()
    clean: str = ""
    task: str = "auto"
    method: str = "full"
    model: str | None = None
    shape: str = "nano"
    tokenizer: str = "cria"
    vocab_size: int = 4096
    steps: int | None = None
    minutes: float = 1.0
    batch_tokens: int = 1024
    length: int = 256
    micro_rows: int = 8
    optimizer: str = "muon"
    lr: float | None = None
    rates: str = ""
    weight_decay: float = 0.0
    z_loss: float = 0.0
    schedule: str = "wsd"
    warmup: float = 0.04
    clip: float = 1.0
    precision: str = "auto"
    threads: int | None = None
    seed: int = 0
    held_out: float = 0.02
    evaluate_every: int = 100
    save_every: int = 200
    keep_checkpoints: int = 2
    rank: int = 16
    alpha: float = 32.0
    targets: str = "all-linear"
    rslora: bool = False
    base_format: str = "q8_0"
    merge: bool = False
    exact_scaling: bool = False
    weights: str = "fp32"
    recompute: str = "none"
    recompute_every: int = 1
    offload: str = "none"
    optimizer_step: str = "after"
    loss: str = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0
    reference_free: bool = False
    reward: str = "exact"
    group: int = 8
    max_tokens: int = 32
    kl: float = 0.0
    rollouts: str = "exact"
    tp: int = 1
    cp: int = 1
    pp: int = 1
    pp_schedule: str = "1f1b"
    pp_stages: int = 2

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is {quoted(getattr(self, name))}: use one of {', '.join(known)}")
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UsageError(f"{name} is {quoted(value)}: it must be from {low} to {high}")
        parsed_rates(self.rates)
        parsed_steps(self.clean)
        check_task(self)
        check_degrees(self)
        if self.batch_tokens < self.length:
            raise UsageError(
                f"batch_tokens is {self.batch_tokens}, less than one row of {self.length}: raise it, or lower length"
            )
        check_savings(self)

    @property
    def degrees(self) -> Degrees:
        """How the processes of torchrun share the work."""
        return Degrees(**{name: getattr(self, name) for name in DEGREES})

    @property
    def shared(self) -> int:
        """How many processes share a pass of the model."""
        return prod(getattr(self, name) for name in DEGREES)

    @property
    def is_cut(self) -> bool:
        """Whether several processes share each matrix or each row."""
        return self.tp * self.cp > 1

    @property
    def stages(self) -> int:
        """How many stages the layers are in."""
        return self.pp * self.pp_stages if self.pp > 1 and self.pp_schedule == "interleaved" else self.pp

    @property
    def rows(self) -> int:
        """Rows of a step."""
        return self.batch_tokens // self.length

    @property
    def rate(self) -> float:
        """The full learning rate."""
        return RATES[self.optimizer] if self.lr is None else self.lr

    def with_rate(self, hidden_size: int) -> "Recipe":
        """The recipe with a rate for its trained model, where it has none; else this one."""
        if self.model is None or self.lr is not None:
            return self
        return replace(self, lr=rate_of_trained(self.task, self.method, hidden_size, self.optimizer))

    def training_task(self) -> Task:
        """The task with its options; a recipe's task "auto" has to be decided first."""
        options = TaskOptions(
            z_loss=self.z_loss,
            loss=self.loss,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            is_reference_free=self.reference_free,
            reward=self.reward,
            group=self.group,
            max_tokens=self.max_tokens,
            kl=self.kl,
            length=self.length,
        )
        return TASKS[self.task](options)

    @property
    def lora(self) -> LoraConfig:
        """The adapter of the methods that train one."""
        names = self.targets if self.targets == ALL_LINEAR else self.targets.split(",")
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=names,
            use_rslora=self.rslora,
            use_dora=METHODS[self.method].use_dora,
        )

    def to_toml(self) -> str:
        """The recipe as a file that `llamita.train.recipe_file` reads."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items() if v is not None}
        return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


DEGREES = ("tp", "cp", "pp")
OPEN_OR_TOKEN_TASKS = ("auto", *TOKEN_TASKS)  # auto is checked again once it is decided


def check_task(recipe: Recipe) -> None:
    """Raise UsageError for settings that the task, its loss or the method does not know."""
    if recipe.method != "full" and recipe.model is None:
        raise UsageError(f"method is {recipe.method}, which adapts a trained model: name one with --model")
    if recipe.task == "reward" and recipe.method != "full":
        raise UsageError(f"method is {recipe.method}, and a reward model has a head to train: take --method full")
    if recipe.loss == "ipo" and not recipe.beta:
        raise UsageError("beta is 0, and the loss ipo divides by it: give one above 0")
    if recipe.z_loss and recipe.task not in OPEN_OR_TOKEN_TASKS:
        raise UsageError(f"z_loss is of pretrain and sft, and the task is {recipe.task}: leave --z-loss out")
    if recipe.z_loss and recipe.tp > 1:
        raise UsageError(
            f"z_loss needs all logits of a token, and --tp {recipe.tp} shards them: leave one of the two out"
        )


def check_degrees(recipe: Recipe) -> None:
    """Raise UsageError for what does not go with processes that share a model."""
    for name in DEGREES:
        size = getattr(recipe, name)
        if size > 1 and recipe.exact_scaling:
            raise UsageError(f"--exact-scaling is for data parallelism, and {name} is {size}: leave one of the two out")
        if size > 1 and recipe.task not in OPEN_OR_TOKEN_TASKS:
            raise UsageError(
                f"task is {recipe.task} and {name} is {size}: only {' and '.join(TOKEN_TASKS)} are trained by "
                f"processes that share a model, leave --{name} out"
            )


def check_savings(recipe: Recipe) -> None:
    """Raise UsageError for savings of memory that do not go together."""
    if recipe.optimizer_step == "in-backward" and (reason := _needs_all_gradients(recipe)):
        raise UsageError(f"optimizer_step in-backward frees each gradient at once, but {reason}")
    if recipe.recompute == "full" and recipe.offload in ("activations", "both"):
        raise UsageError("recompute full leaves no activations to offload: give up one of the two")


def _needs_all_gradients(recipe: Recipe) -> str | None:
    """What of a recipe needs all gradients at once, and what to do; None if nothing does."""
    if recipe.clip:
        return f"clipping to a norm of {recipe.clip} needs all of them: set clip to 0"
    if recipe.rows > recipe.micro_rows:
        return f"adding micro-batches of {recipe.micro_rows} rows needs all of them: set micro_rows to {recipe.rows}"
    return "exact_scaling adds them in a tree: leave one of the two out" if recipe.exact_scaling else None


CHOICES: Mapping[str, tuple[str, ...]] = {
    "task": ("auto", *TASKS),
    "method": tuple(METHODS),
    "loss": LOSSES,
    "rollouts": ROLLOUTS,
    "optimizer": tuple(OPTIMIZERS),
    "schedule": tuple(SCHEDULES),
    "precision": PRECISIONS,
    "weights": WEIGHTS,
    "recompute": RECOMPUTE,
    "offload": OFFLOAD,
    "optimizer_step": OPTIMIZER_STEPS,
    "pp_schedule": tuple(PP_SCHEDULES),
}
BOUNDS: Mapping[str, tuple[float, float]] = {
    "vocab_size": (SMALLEST, 2**20),
    "steps": (1, 10**9), "minutes": (0.01, 10**5), "batch_tokens": (1, 2**31), "length": (2, 2**20),
    "micro_rows": (1, 2**20), "lr": (1e-12, 10.0), "weight_decay": (0.0, 10.0), "z_loss": (0.0, 1.0),
    "warmup": (0.0, 1.0),
    "clip": (0.0, 1e9), "seed": (0, 2**63 - 1), "held_out": (0.0, 0.5), "evaluate_every": (1, 10**9),
    "save_every": (1, 10**9), "keep_checkpoints": (1, 10**9),
    "rank": (1, 2**20), "recompute_every": (1, 2**20), "alpha": (1e-6, 1e9),
    "beta": (0.0, 1e6), "label_smoothing": (0.0, 0.5), "group": (2, 4096), "max_tokens": (1, 2**20), "kl": (0.0, 1e6),
    "threads": (1, MOST_THREADS), "tp": (1, 4096), "cp": (1, 4096), "pp": (1, 4096),
    "pp_stages": (2, 4096),
}  # fmt: skip
