"""The recipe of cria: what its corpus promises, and that its loop trains, resumes and exports."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import llamita
from llamita.data.documents import IGNORED
from llamita.model.llama import LlamaForCausalLM
from llamita.tokenizer.chat import render
from llamita.train.shapes import SHAPES
from recipes.cria import chats, tasks
from recipes.cria.corpus import Corpus, render_chat
from recipes.cria.export import export
from recipes.cria.functions import functions
from recipes.cria.grammar import expand
from recipes.cria.recipe import CriaRecipe, read_recipe
from recipes.cria.score import (
    grams,
    is_own_friend,
    ordinary_capitals,
    question,
    score_task,
    story_starts,
    stray_names,
    unseen_grams,
    writer,
)
from recipes.cria.session import begin, prepare_tokenizer
from recipes.cria.source import CorpusSource
from recipes.cria.stories import short_story, story
from recipes.cria.tokens import BOS, SPECIAL, TEMPLATE

RECIPE = Path(__file__).parents[2] / "recipes" / "cria.toml"
MIX = {"story": 2.0, "small talk": 1.0, "everyday": 1.0, "plain": 2.0, "add": 1.0, "tool call": 1.0}


def tiny(folder: Path) -> CriaRecipe:
    recipe = read_recipe(RECIPE, steps=8, run=folder, output=folder / "out")
    changes = {"shape": "pico", "batch_tokens": 128, "length": 64, "evaluate_every": 4, "save_every": 4}
    train = replace(recipe.train, precision="fp32", **changes)
    return replace(recipe, vocab_size=384, tokenizer_documents=60, mix=MIX, second_half={"add": 9.0}, train=train)


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


def test_a_short_story_about_a_fox_or_a_lamp_has_it() -> None:
    assert all("fox" in short_story(Random(i), hero="fox") for i in range(50))
    begin = "Be Beside Climb Come Count Leave Nobody Since Wait Whose Will"  # sentences of short stories alone
    ordinary = ordinary_capitals() | set(begin.split())
    for i in range(200):
        text = short_story(Random(i), about="lamp" if i % 2 else "")
        assert not i % 2 or text.count("lamp") > 1
        assert not stray_names("", text, ordinary) and not set("{}[]|@") & set(text) and not is_own_friend(text)
        assert len(text.split()) <= 130
    assert "Zora" in short_story(Random(1), hero="girl", name="Zora")


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


def test_only_what_the_assistant_says_is_learned_and_no_document_from_another(tokenizer: Tokenizer) -> None:
    row = Corpus({"tool call": 1.0}, seed=1).row(0, tokenizer, length=400)
    learned = tokenizer.decode([target for target in row.targets if target != IGNORED])
    assert '"parameters"' in learned and "You can call" not in learned
    begins = [i for i, number in enumerate(row.documents) if i == 0 or number != row.documents[i - 1]]
    assert len(begins) > 1 and {row.inputs[i] for i in begins} == {tokenizer.token_to_id(BOS)}
    assert tokenizer.token_to_id(BOS) not in row.targets
    for i in range(len(row.inputs) - 1):
        if i + 1 not in begins:
            assert row.targets[i] in (IGNORED, row.inputs[i + 1])


def test_the_source_reads_the_same_rows_in_any_steps_and_changes_its_mix_in_the_second_half(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    recipe = tiny(tmp_path)
    source, other = CorpusSource(recipe, tokenizer), CorpusSource(recipe, tokenizer, position=2)
    first, second = source.next(2), source.next(2)
    assert torch.equal(other.next(2).inputs, second.inputs) and not torch.equal(first.inputs, second.inputs)
    assert (source.position, len(source)) == (4, 16)
    assert [recipe.mix_at(row)["add"] for row in (0, 7, 8, 15)] == [1, 1, 9, 9]
    longer = replace(recipe, train=replace(recipe.train, steps=80))
    assert CorpusSource(longer, tokenizer).fingerprint == source.fingerprint
    changed = replace(recipe, second_half={})
    assert CorpusSource(changed, tokenizer).fingerprint != source.fingerprint


def test_the_tokenizer_loses_nothing_and_splits_numbers(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 384
    text = "Grüße, 1234 llamas!\n\n\tdef f(x): return x  # ロバ"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    digits = tokenizer.encode("1234", add_special_tokens=False)
    assert digits.tokens == ["1", "2", "3", "4"]
    assert tokenizer.encode("a").tokens[0] == BOS
    assert all(tokenizer.encode(token, add_special_tokens=False).tokens == [token] for token in SPECIAL)


def test_a_stopped_run_goes_on_exactly_and_the_export_loads(tmp_path: Path) -> None:
    whole, stopped = begin(tiny(tmp_path / "whole")), begin(tiny(tmp_path / "stopped"))
    lines = list(whole.steps(lambda: False))
    assert lines[-1].loss < lines[0].loss and lines[-1].held_out_loss is not None
    for line in stopped.steps(lambda: False):
        if line.step == 5:  # one step after its checkpoint
            break
    recipe = tiny(tmp_path / "stopped")
    resumed = begin(recipe)
    assert resumed.run.step == 4
    assert [line.loss for line in resumed.steps(lambda: False)] == [line.loss for line in lines[4:]]
    folder = export(resumed.run.model, prepare_tokenizer(recipe), recipe)
    weights = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in weights and {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    loaded = LlamaForCausalLM.from_pretrained(folder)
    for name, weight in whole.run.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.bfloat16())


def test_the_recipe_beside_the_weights_is_the_one_that_made_them() -> None:
    assert (Path(llamita.__file__).parent / "cria" / "recipe.toml").read_text() == RECIPE.read_text()


def test_the_rates_are_those_of_the_recipe(tmp_path: Path) -> None:
    recipe = tiny(tmp_path)
    run = begin(recipe).run
    names = {id(weight): name for name, weight in run.model.named_parameters()}
    groups = [group for optimizer in run.optimizers for group in optimizer.param_groups]
    rates = {names[id(weight)]: group["initial_lr"] for group in groups for weight in group["params"]}
    layer = "model.layers.1."
    wanted = {
        "model.embed_tokens.weight": 3e-3, "model.norm.weight": 3e-3, layer + "input_layernorm.weight": 3e-3,
        layer + "self_attn.q_proj.weight": 5e-3, layer + "self_attn.k_proj.weight": 5e-3,
        layer + "self_attn.v_proj.weight": 1e-2, layer + "mlp.down_proj.weight": 1e-2,
    }  # fmt: skip
    assert {name: rates[name] for name in wanted} == pytest.approx(wanted)


def test_a_score_counts_exact_answers_and_unseen_grams(tmp_path: Path) -> None:
    recipe = tiny(tmp_path)
    rng = Random("score/add")
    cases = [tasks.draw("add", rng, held_out=True) for _ in range(8)]
    answers = {question(case): case.answer for case in cases[::2]}
    share = score_task("add", lambda prompts: [answers.get(prompt, "?") for prompt in prompts], count=8)
    assert share == 0.5
    library, model = prepare_tokenizer(recipe), begin(recipe).run.model
    row = Corpus(recipe.mix, seed=recipe.train.seed).row(0, library, length=recipe.train.length)
    seen = library.decode(row.inputs, skip_special_tokens=False)
    assert unseen_grams([seen], recipe, library) == 0
    assert unseen_grams(["w " * 9], recipe, library) == 1
    assert list(grams("A b, c d e f g h!")) == ["a b c d e f g h"]
    starts = story_starts(3)
    greedy = writer(model, library, max_new_tokens=4)
    assert greedy(starts) == [greedy([start])[0] for start in starts]


def test_who_is_their_own_friend_is_found() -> None:
    assert is_own_friend('It rained. Clara and her friend Clara ran. "Hello," said Clara.')
    assert not is_own_friend("Clara sang. Her friend Ben heard Clara. She was a friend. Clara ran.")
    assert not any(is_own_friend(story(Random(seed))) for seed in range(300))


def test_a_name_from_nowhere_is_found() -> None:
    ordinary = {"Then", "He"}
    assert stray_names("A boy named Tom", " ran. Then Tom met his friend Ben. He liked Ben.", ordinary) == []
    assert stray_names("A boy named Tom", " ran. Then Ben came. He met a fox called Lulu.", ordinary) == ["Ben"]


def test_the_shipped_model_is_the_recipes(cria_path: Path) -> None:
    assert (cria_path / "chat_template.jinja").read_text() == TEMPLATE.read_text()
    assert (cria_path / "model.safetensors").stat().st_size <= 10_000_000
    model = LlamaForCausalLM.from_pretrained(cria_path)
    config, recipe = model.config, read_recipe(RECIPE)
    facts = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads)
    assert (*facts, config.intermediate_size) == SHAPES[recipe.train.shape]
    assert (config.vocab_size, config.max_position_embeddings) == (recipe.vocab_size, recipe.train.length)
    assert config.tie_word_embeddings and 1_000_000 <= model.num_parameters() <= 5_000_000
    widths = (config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
    assert all(width % 256 == 0 for width in widths)
