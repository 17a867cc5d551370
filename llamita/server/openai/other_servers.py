"""Fields of vLLM and llama.cpp that change an answer: it would not be what was asked for if they were ignored."""

from collections.abc import Mapping
from typing import Any

FORMS = "ask by response_format, structured_outputs, regex, choice or grammar"
FILTERS = "use temperature, top_p, top_k and min_p"

# The field, and what to do instead.
NOT_HERE: Mapping[str, str] = {
    **dict.fromkeys(("structural_tag", "guided_whitespace_pattern"), FORMS),
    "bad_words": "forbid tokens by logit_bias",
    "allowed_token_ids": "say by regex, choice or grammar what may be written",
    "use_beam_search": "the server draws, or takes the most probable token",
    "truncate_prompt_tokens": "prompts are never cut: send less",
    "prompt_embeds": "the server reads text and ids alone",
    "n_predict": "it is called max_tokens here",
    "repeat_penalty": "it is called repetition_penalty here",
    "mirostat": FILTERS,
    "typical_p": FILTERS,
    "xtc_probability": FILTERS,
    "dry_multiplier": "use repetition_penalty, presence_penalty or frequency_penalty",
    "lora": "an adapter is named as the model",
}
# The values by which they ask for nothing, which clients send along.
NOTHING: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("mirostat", "dry_multiplier", "xtc_probability"), (0,)),
    **dict.fromkeys(("bad_words", "lora"), ([],)),
    "use_beam_search": (False,),
    "n_predict": (-1,),
    **dict.fromkeys(("typical_p", "repeat_penalty"), (1,)),
}
