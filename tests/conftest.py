"""What every test stands on: one thread, fixed seeds, no network, and small models whose axes all differ in size."""

import gc
import logging
import os

# Before torch and the hub are imported; processes that tests start inherit it. Threads that wait sleep: where two
# processes run tests, one that spins takes the processor from the other.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ["OMP_WAIT_POLICY"] = "passive"

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

import llamita
from llamita.config import LlamaConfig
from tests.small import save_small_adapter, save_small_model
from tests.zygote import Zygote

gc.disable()  # until all tests are collected: what libraries and tests are made of is never garbage
torch.set_num_threads(1)
hypothesis.settings.register_profile("llamita", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("llamita")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes long, and leave out, not skip, what needs a CUDA device where there is none."""
    items.sort(key=lambda item: item.get_closest_marker("early") is None)  # the order is random but for that
    if torch.cuda.is_available():
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let a process with nothing left take tests from another's: so a long one holds up none behind it."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


def pytest_collection_finish() -> None:
    """Search for garbage from now on, seldom, and not among what libraries and tests are made of."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("torch") and isinstance(logger, logging.Logger):
            logger.propagate = True  # or pytest gives each of torch's 40 loggers its handlers, six times a test


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start every test from the same random state, and on one thread: two that share small work mostly wait."""
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():  # where none is, torch.manual_seed remembers each call for it, and the stack
        torch.cuda.manual_seed_all(0)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def server_log() -> Iterator[None]:
    """Give the loggers of a server back as they were: a command lets them write to the stderr of its own test."""
    loggers = [logging.getLogger(name) for name in ("llamita.server", "uvicorn.error", "asyncio")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(scope="session")
def tiny_config() -> LlamaConfig:
    """A Llama whose sizes differ pairwise, so that a swapped axis cannot hide."""
    return LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=88,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        num_hidden_layers=3,
        max_position_embeddings=64,
    )


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone."""
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """What starts processes that have imported torch, and no more."""
    process = Zygote()
    yield process
    process.stop()


@pytest.fixture(scope="session")
def cria_path() -> Path:
    """The folder of the embedded model."""
    return Path(llamita.__file__).parent / "cria"


@pytest.fixture(scope="session")
def small_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 0.2 M parameters with a tokenizer of bytes, made from a seed; read it, do not write into it."""
    folder = tmp_path_factory.mktemp("small")
    save_small_model(folder)
    return folder


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory, small_path: Path) -> Path:
    """The folder of a LoRA adapter of the small model; read it, do not write into it."""
    return save_small_adapter(tmp_path_factory.mktemp("adapter"), small_path, seed=1)


@pytest.fixture(scope="session")
def other_adapter(tmp_path_factory: pytest.TempPathFactory, small_path: Path) -> Path:
    """Another one, of other layers."""
    return save_small_adapter(tmp_path_factory.mktemp("other"), small_path, seed=2, layers=["o_proj", "down_proj"])
