"""A recipe file, read: every number that decides what the model becomes."""

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from llamita.config import LlamaConfig
from recipes.cria.tokens import BOS, END, EOM, EOT, PAD


@dataclass(frozen=True, kw_only=True)
class Training:
    """Budget and schedule; `warmup` and `decay` are shares of the steps, `rows` the rows of a step."""

    tokens: int
    rows: int
    warmup: float
    decay: float
    muon_lr: float
    query_key_lr: float
    adamw_lr: float
    clip: float
    evaluate_every: int
    checkpoint_every: int


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What `recipes/cria.toml` says; `text` is the file itself, which is shipped beside the weights."""

    text: str
    seed: int
    output: Path
    run: Path
    shape: dict[str, int | float]
    tokenizer_documents: int
    mix: dict[str, float]
    second_half: dict[str, float]
    training: Training

    def mix_at(self, step: int) -> dict[str, float]:
        """The mix of a step: in the second half, some kinds of text come more often or less."""
        return self.mix | (self.second_half if 2 * step >= self.steps else {})

    @property
    def length(self) -> int:
        """Tokens of a row: the context the model is trained for."""
        return int(self.shape["max_position_embeddings"])

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole budget."""
        return self.training.tokens // (self.training.rows * self.length)

    def config(self, tokenizer: Tokenizer) -> LlamaConfig:
        """The model's config.json: the shape, and the ids of the special tokens."""
        end = [tokenizer.token_to_id(token) for token in (END, EOT, EOM)]
        ids = {
            "bos_token_id": tokenizer.token_to_id(BOS),
            "eos_token_id": end,
            "pad_token_id": tokenizer.token_to_id(PAD),
        }
        names = {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "tie_word_embeddings": True}
        return LlamaConfig.from_dict({**self.shape, **ids, **names})


def read_recipe(path: Path, *, tokens: int | None = None) -> Recipe:
    """Read a recipe; `tokens` replaces its budget."""
    text = path.read_text(encoding="utf-8")
    values = tomllib.loads(text)
    training = Training(**values["training"])
    return Recipe(
        text=text,
        seed=values["seed"],
        output=Path(values["output"]),
        run=Path(values["run"]),
        shape=values["model"],
        tokenizer_documents=values["tokenizer"]["documents"],
        mix=values["mix"],
        second_half=values["second_half"],
        training=replace(training, tokens=tokens or training.tokens),
    )
