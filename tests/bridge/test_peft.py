"""peft on our models: outputs, gradients, texts, files and merged weights as on transformers' models, to the bit."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor

import llamita
from llamita import LlamaForCausalLM
from llamita.bridge.trainable import trainable
from llamita.errors import UnsupportedError
from tests.small import CONFIG

# Of transformers 5, on names that peft still uses and on the older spelling in our files.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
IDS = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(1))


def life(model: Any, kind: Any, start: Path, folder: Path, options: dict[str, Any]) -> list[Tensor]:
    """All that an adapter's life yields: loss, gradients, texts, the model with it off, read again, and merged."""
    torch.manual_seed(1)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, **options)
    )
    out = adapted(input_ids=IDS, labels=IDS)
    out.loss.backward()
    grads = [parameter.grad.clone() for parameter in adapted.parameters() if parameter.requires_grad]
    adapted.eval()
    seen = [out.loss.detach(), out.logits.detach(), *grads]
    with torch.no_grad():
        seen.append(adapted.generate(input_ids=IDS, max_new_tokens=5, do_sample=False))
        torch.manual_seed(3)
        seen.append(adapted.generate(IDS, max_new_tokens=5, do_sample=True))
        with adapted.disable_adapter():
            seen.append(adapted(IDS).logits)
        adapted.save_pretrained(str(folder / "adapter"))
        seen.append(peft.PeftModel.from_pretrained(kind.from_pretrained(start), str(folder / "adapter"))(IDS).logits)
        merged = adapted.merge_and_unload()
        assert type(merged) is type(model)
        seen.append(merged(IDS).logits)
        merged.save_pretrained(folder / "merged")
        seen.append(kind.from_pretrained(folder / "merged")(IDS).logits)
    return seen


@pytest.mark.parametrize(
    ("tied", "options"),
    [
        (True, {}),
        (False, {"target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.1, "use_dora": True}),
        (False, {"modules_to_save": ["lm_head"]}),
        (False, {"target_modules": "all-linear"}),
    ],
)
def test_lora_as_on_transformers_to_the_bit(tied: bool, options: dict[str, Any], tmp_path: Path) -> None:
    start = tmp_path / "start"
    LlamaForCausalLM(CONFIG.replace(tie_word_embeddings=tied)).save_pretrained(start)
    ours = LlamaForCausalLM.from_pretrained(start)
    if options.get("target_modules") == "all-linear":  # peft leaves out the head of models whose type it knows
        ours = trainable(ours)
    theirs = transformers.LlamaForCausalLM.from_pretrained(start)
    mine = life(ours, LlamaForCausalLM, start, tmp_path / "ours", options)
    expected = life(theirs, transformers.LlamaForCausalLM, start, tmp_path / "theirs", options)
    assert len(mine) == len(expected)
    assert all(map(torch.equal, mine, expected))
    # The card and the file name the model that an adapter is for; each reads the other's adapter.
    card = (tmp_path / "ours" / "adapter" / "README.md").read_text()
    assert (f"base_model: {start}" in card) == isinstance(ours, transformers.PreTrainedModel)
    assert "_name_or_path" not in (tmp_path / "ours" / "merged" / "config.json").read_text()
    named = peft.PeftConfig.from_pretrained(str(tmp_path / "ours" / "adapter")).base_model_name_or_path
    assert named == str(start)
    with torch.no_grad():
        crossed = peft.PeftModel.from_pretrained(
            LlamaForCausalLM.from_pretrained(start), str(tmp_path / "theirs/adapter")
        )
        assert torch.equal(crossed(IDS).logits, mine[-3])


def test_a_classifier_with_an_adapter(tmp_path: Path) -> None:
    llamita.LlamaForSequenceClassification(CONFIG).save_pretrained(tmp_path)
    losses = []
    for library in (llamita, transformers):
        torch.manual_seed(1)
        model = library.LlamaForSequenceClassification.from_pretrained(tmp_path)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, task_type="SEQ_CLS", init_lora_weights=False)).eval()
        losses.append(adapted(input_ids=IDS, labels=torch.tensor([0, 1])).loss)
    assert torch.equal(*losses)


def test_prompts_that_are_learnt_train_but_do_not_vanish_in_generate() -> None:
    model = LlamaForCausalLM(CONFIG)
    adapted = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert adapted(input_ids=IDS, labels=IDS).logits.shape[1] == 12
    with pytest.raises(UnsupportedError, match=r"^generate makes its own inputs, so the prepare_inputs_for_generation"):
        adapted.generate(input_ids=IDS, max_new_tokens=2)
    assert model.generate(IDS, max_new_tokens=2).shape == (2, 11)  # peft has put back what it took
