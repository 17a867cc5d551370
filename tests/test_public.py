"""The public surface: names, where they live, and what importing them costs."""

import ast
import importlib
import inspect
import os
import subprocess
import sys

import pytest

import llamita
from tests.architecture.source import ROOT
from tests.zygote import Zygote, result

OURS = {"torch", "numba", "llvmlite", "triton", "flash_attn"}
HUB = {"transformers", "huggingface_hub", "peft", "lm_eval", "tokenizers", "safetensors", "requests", "httpx", "httpx2"}
SERVER = {"fastapi", "uvicorn", "starlette", "pydantic", "prometheus_client"}
NAMES = [name for name in llamita.__all__ if name != "__version__"]


def modules_after(code: str) -> set[str]:
    """Names in sys.modules of a fresh process after it ran some code."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stderr.split())


def modules_beside_torch(code: str, zygote: Zygote) -> set[str]:
    """The names that some code adds to sys.modules of a process that has imported torch."""
    script = f"import sys; before = set(sys.modules); {code}; print(*sorted(set(sys.modules) - before))"
    return set(result(zygote.start(script, os.environ | {"PYTHONPATH": str(ROOT)})).split())


def for_type_checkers() -> dict[str, str]:
    """Name to module, as the TYPE_CHECKING block of the package says."""
    tree = ast.parse(inspect.getsource(llamita))
    block = next(node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    arrows = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in arrows for alias in node.names}


@pytest.mark.parametrize("name", NAMES)
def test_name_resolves_where_it_lives_and_is_documented(name: str) -> None:
    thing = getattr(llamita, name)
    home = importlib.import_module(llamita._HOME[name])
    assert getattr(home, name) is thing
    if inspect.isclass(thing) or inspect.isroutine(thing):
        assert inspect.getdoc(thing)
        assert "__doc__" not in vars(thing) or vars(thing)["__doc__"], f"{name} inherits its docstring"


def test_the_three_lists_of_names_agree() -> None:
    assert for_type_checkers() == llamita._HOME
    assert llamita.__all__ == ["__version__", *llamita._HOME]
    assert dir(llamita) == sorted(llamita.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'llamita' has no attribute 'Llama4'"):
        llamita.Llama4  # noqa: B018


@pytest.mark.parametrize("name", ["SamplingParams", "LlamaForCausalM", "pipeline"])
def test_the_advice_for_a_name_is_told_by_an_import_too(name: str) -> None:
    with pytest.raises(AttributeError) as told:
        getattr(llamita, name)
    with pytest.raises(ImportError) as imported:
        exec(f"from llamita import {name}")
    assert str(imported.value).partition(":")[2] == str(told.value).partition(":")[2] != ""
    assert not hasattr(llamita, name)


def test_version_is_the_package_s() -> None:
    assert f'version = "{llamita.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_import_loads_no_library() -> None:
    assert not modules_after("import llamita") & (OURS | HUB | SERVER | {"numpy", "rich", "jinja2"})


def test_config_needs_no_torch() -> None:
    loaded = modules_after("from llamita import LlamaConfig, PRESETS, LlamitaError; LlamaConfig()")
    assert not loaded & (OURS | HUB | SERVER | {"numpy"})


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["generate", "--help"], ["chat", "--help"], ["serve", "--help"], ["train", "--help"]],
)
def test_help_loads_neither_torch_nor_hub_nor_server(arguments: list[str]) -> None:
    loaded = modules_after(f"from llamita.cli.main import main; sys.exit(main({arguments!r}))")
    assert "llamita.cli.main" in loaded
    assert not loaded & (OURS | HUB | SERVER | {"numpy"})


def test_model_class_costs_no_more_than_torch(zygote: Zygote) -> None:
    loaded = modules_beside_torch("from llamita import LlamaForCausalLM", zygote)
    assert "llamita.model.llama" in loaded
    dear = {"torch.nn.attention.varlen", "torch.nn.attention.flex_attention", "torch._dynamo", "torch._inductor"}
    assert not loaded & (dear | HUB | SERVER | (OURS - {"torch"}) | {"rich", "jinja2"})


def test_fused_steps_load_no_compiler_before_there_is_a_kernel_to_run(zygote: Zygote) -> None:
    loaded = modules_beside_torch("import llamita.plans.cpu", zygote)
    assert "llamita.kernels.cpu.runtime.program" in loaded
    assert not loaded & (HUB | SERVER | (OURS - {"torch"}))


def test_a_measured_session_holds_no_tokenizers(zygote: Zygote) -> None:
    loaded = modules_beside_torch("import llamita.bench.ours", zygote)
    assert "llamita.bench.ours" in loaded and "tokenizers" not in loaded
