"""The recipe of cria: what its corpus promises, and that its loop trains, resumes and exports."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from llamita.model.llama import LlamaForCausalLM
from llamita.tokenizer.chat import render
from recipes.cria import chats, tasks
from recipes.cria.corpus import IGNORED, Corpus, render_chat
from recipes.cria.export import TEMPLATE, export
from recipes.cria.functions import functions
from recipes.cria.grammar import expand
from recipes.cria.recipe import Recipe, read_recipe
from recipes.cria.score import (
    grams,
    ordinary_capitals,
    question,
    score_task,
    story_starts,
    stray_names,
    unseen_grams,
    writer,
)
from recipes.cria.stories import story
from recipes.cria.tokens import BOS, SPECIAL
from recipes.cria.train import Run, document_positions, held_out, prepare_tokenizer, schedule, train

RECIPE = Path(__file__).parents[2] / "recipes" / "cria.toml"
SHAPE = {
    "vocab_size": 384, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
}  # fmt: skip
MIX = {"story": 2.0, "small talk": 1.0, "add": 1.0, "tool call": 1.0}


def tiny(folder: Path) -> Recipe:
    recipe = read_recipe(RECIPE, tokens=8 * 2 * 64)
    training = replace(recipe.training, rows=2, evaluate_every=4, checkpoint_every=4)
    return replace(
        recipe,
        output=folder / "out",
        run=folder,
        shape=SHAPE,
        tokenizer_documents=60,
        mix=MIX,
        second_half={},
        training=training,
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return prepare_tokenizer(tiny(tmp_path_factory.mktemp("run")))


def test_a_template_picks_nests_fills_and_mends() -> None:
    texts = {expand("[a|an old] {x} ran. [it|{y}] fell.", Random(i), {"x": "owl", "y": "[she|he]"}) for i in range(64)}
    starts, ends = ("An owl ran.", "An old owl ran."), ("It fell.", "She fell.", "He fell.")
    assert texts == {f"{start} {end}" for start in starts for end in ends}


def test_stories_introduce_their_names_and_leave_no_slot_open() -> None:
    ordinary = ordinary_capitals()
    for seed in range(300):
        text = story(Random(seed))
        assert not stray_names("", text, ordinary), text
        assert not set("{}[]|@") & set(text)
        assert text == story(Random(seed))


def test_a_story_about_a_fox_has_a_fox() -> None:
    assert all("fox" in story(Random(i), hero="fox") for i in range(50))


@pytest.mark.parametrize("task", tasks.TASKS)
def test_held_out_cases_are_never_drawn_for_training(task: str) -> None:
    rng = Random(task)
    trained = {tasks.draw(task, rng).key for _ in range(300)}
    asked = {tasks.draw(task, rng, held_out=True).key for _ in range(30)}
    assert asked and not trained & asked


def test_answers_are_right() -> None:
    rng = Random(0)
    for _ in range(200):
        for task in ("add", "subtract"):
            left, right = tasks.draw(task, rng).answer.split(" = ")
            assert eval(left) == int(right) >= 0
        for task, order in (("sort numbers", sorted), ("sort words", sorted), ("reverse", reversed), ("copy", list)):
            case = tasks.draw(task, rng)
            assert case.answer.split(": ")[1].split() == list(order(case.question.split(": ")[1].split()))
        filled = tasks.draw("json", rng)
        assert all(str(value) in filled.question for value in json.loads(filled.answer).values())
        call = tasks.draw("tool call", rng)
        assert json.loads(call.answer)["name"] in {tool.name for tool in call.tools}


def test_functions_compile() -> None:
    for seed in range(100):
        compile(functions(Random(seed)), "functions", "exec")


@pytest.mark.parametrize("task", ["add", "name", "tool call"])
def test_conversations_are_rendered_as_the_chat_template_renders_them(task: str) -> None:
    rng = Random(1)
    for _ in range(20):
        case = tasks.draw(task, rng)
        messages = [*chats.a_system(rng), *chats.solved([case])]
        given = [{"role": role, "content": content} for role, content in messages]
        tools = [tool.schema() for tool in case.tools] or None
        text = render(TEMPLATE.read_text(), given, tools=tools, add_generation_prompt=False, bos_token=BOS)
        assert text == "".join(segment.text for segment in render_chat(messages, case.tools))
        asked = render(TEMPLATE.read_text(), given[-2 - 2 * len(case.before) : -1], tools=tools, bos_token=BOS)
        assert asked == question(case)


def test_a_tool_call_and_its_result_are_rendered_as_they_were_learned() -> None:
    case = tasks.draw("tool call", Random(3))
    call = json.loads(case.answer)
    messages = [("user", case.question), ("assistant", case.answer), ("ipython", "sunny")]
    function = {"name": call["name"], "arguments": json.dumps(call["parameters"])}
    given = [
        {"role": "user", "content": [{"type": "text", "text": case.question}]},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "content": "sunny"},
    ]
    tools = [tool.schema() for tool in case.tools]
    text = render(TEMPLATE.read_text(), given, tools=tools, add_generation_prompt=False, bos_token=BOS)
    assert text == "".join(segment.text for segment in render_chat(messages, case.tools))


def test_a_row_depends_on_its_index_alone(tokenizer: Tokenizer) -> None:
    rows = [Corpus(MIX, seed=1).row(index, tokenizer, length=64) for index in (3, 4, 3)]
    assert rows[0] == rows[2] != rows[1]
    assert rows[0] != Corpus(MIX, seed=2).row(3, tokenizer, length=64)
    assert all(len(part) == 64 for row in rows for part in row)


def test_only_what_the_assistant_says_is_learned(tokenizer: Tokenizer) -> None:
    tokens, labels = Corpus({"tool call": 1.0}, seed=1).row(0, tokenizer, length=400)
    assert {label for label in labels if label != IGNORED} <= set(tokens)
    learned = tokenizer.decode([label for label in labels if label != IGNORED])
    assert '"parameters"' in learned and "You can call" not in learned


def test_the_tokenizer_loses_nothing_and_splits_numbers(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 384
    text = "Grüße, 1234 llamas!\n\n\tdef f(x): return x  # ロバ"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    digits = tokenizer.encode("1234", add_special_tokens=False)
    assert digits.tokens == ["1", "2", "3", "4"]
    assert tokenizer.encode("a").tokens[0] == BOS
    assert all(tokenizer.encode(token, add_special_tokens=False).tokens == [token] for token in SPECIAL)


def test_positions_begin_anew_with_every_document() -> None:
    tokens = torch.tensor([[9, 1, 1, 9, 1], [1, 1, 9, 9, 1]])
    assert document_positions(tokens, bos=9).tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 1]]


def test_the_learning_rate_rises_stays_and_falls_to_zero() -> None:
    shares = [schedule(step, 100, warmup=0.1, decay=0.6) for step in range(101)]
    assert shares[0] == pytest.approx(0.1) and shares[10:40] == [1.0] * 30
    assert shares[70] == pytest.approx(0.5) and shares[100] == 0


def test_a_stopped_run_goes_on_exactly_and_the_export_loads(tmp_path: Path) -> None:
    whole, stopped = Run(tiny(tmp_path / "whole")), Run(tiny(tmp_path / "stopped"))
    lines = list(train(whole))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1].keys() >= held_out(whole.model, whole.recipe, whole.tokenizer).keys()
    for line in train(stopped):
        if line["step"] == 5:  # one step after its checkpoint
            break
    resumed = Run(stopped.recipe)
    assert resumed.step == 4
    assert [line["loss"] for line in train(resumed)] == [line["loss"] for line in lines[4:]]
    folder = export(resumed.model, resumed.tokenizer, resumed.recipe)
    weights = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in weights and {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    loaded = LlamaForCausalLM.from_pretrained(folder)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.bfloat16())


def test_a_score_counts_exact_answers_and_unseen_grams(tmp_path: Path) -> None:
    recipe = tiny(tmp_path)
    rng = Random("score/add")
    cases = [tasks.draw("add", rng, held_out=True) for _ in range(8)]
    answers = {question(case): case.answer for case in cases[::2]}
    share = score_task("add", lambda prompts: [answers.get(prompt, "?") for prompt in prompts], count=8)
    assert share == 0.5
    run = Run(recipe)
    tokens, _ = Corpus(recipe.mix, seed=recipe.seed).row(0, run.tokenizer, length=recipe.length)
    seen = run.tokenizer.decode(tokens, skip_special_tokens=False)
    assert unseen_grams([seen], recipe, run.tokenizer) == 0
    assert unseen_grams(["w " * 9], recipe, run.tokenizer) == 1
    assert list(grams("A b, c d e f g h!")) == ["a b c d e f g h"]
    starts = story_starts(3)
    greedy = writer(run.model, run.tokenizer, max_new_tokens=4)
    assert greedy(starts) == [greedy([start])[0] for start in starts]


def test_a_name_from_nowhere_is_found() -> None:
    ordinary = {"Then", "He"}
    assert stray_names("A boy named Tom", " ran. Then Tom met his friend Ben. He liked Ben.", ordinary) == []
    assert stray_names("A boy named Tom", " ran. Then Ben came. He met a fox called Lulu.", ordinary) == ["Ben"]


def test_the_shipped_model_is_the_recipes(cria_path: Path) -> None:
    assert (cria_path / "recipe.toml").read_text() == RECIPE.read_text()
    assert (cria_path / "chat_template.jinja").read_text() == TEMPLATE.read_text()
    assert (cria_path / "model.safetensors").stat().st_size <= 10_000_000
    model = LlamaForCausalLM.from_pretrained(cria_path)
    config, shape = model.config, read_recipe(RECIPE).shape
    assert {name: getattr(config, name) for name in shape} == shape
    assert config.tie_word_embeddings and 1_000_000 <= model.num_parameters() <= 5_000_000
    widths = (config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
    assert all(width % 256 == 0 for width in widths)
