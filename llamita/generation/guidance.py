"""Classifier-free guidance: move the logits away from those of a negative prompt (arXiv:2306.17806)."""

from torch import Tensor

from llamita.errors import UsageError
from llamita.generation.request import GenerationRequest
from llamita.generation.runner import ModelRunner

MOST = 1e15  # a larger scale would leave no finite numbers


class Guidance:
    """Multiplies the difference between the logits of the prompts and those of the negative prompts.

    scale: the factor; 1 changes nothing. runner: runs the model over the negative prompts, a row for each text.
    """

    def __init__(self, scale: float, runner: ModelRunner) -> None:
        self.scale = min(max(scale, -MOST), MOST)
        self.runner = runner

    def __call__(self, logits: Tensor) -> Tensor:
        """Guided log probabilities for logits (B, V)."""
        without = self.runner.native().log_softmax(-1)  # in its dtype, as transformers does
        return self.scale * (logits.log_softmax(-1) - without) + without

    def append(self, step: Tensor) -> None:
        """Append the chosen tokens (B,) to the negative texts too."""
        self.runner.append(step)


def guidance_of(request: GenerationRequest, kind: type[ModelRunner] = ModelRunner) -> Guidance:
    """The guidance that a request asks for. Raises UsageError where its negative prompts do not fit the prompts."""
    scale = request.settings.guidance_scale
    assert scale is not None
    device, prompts = request.input_ids.device, len(request.input_ids)
    ids, mask = (None if x is None else x.to(device) for x in request.negative)
    ids = request.input_ids[:, -1:] if ids is None else ids
    if not ids.shape[1]:
        raise UsageError("guidance_scale with inputs_embeds needs a text to lead away from: pass negative_prompt_ids")
    if len(ids) == prompts * request.settings.num_beams:  # transformers wants the rows of a prompt's beams, all alike
        ids, mask = (None if x is None else x[:: request.settings.num_beams] for x in (ids, mask))
    assert ids is not None
    if len(ids) != prompts:
        raise UsageError(f"negative_prompt_ids has {len(ids)} rows for {prompts} prompts: give one for each")
    return Guidance(scale, kind(request.model, ids, attention_mask=mask, logits_to_keep=0))  # all of them, as there
