"""Fields of vLLM and llama.cpp that change an answer: it would not be what was asked for if they were ignored."""

from collections.abc import Mapping
from typing import Any

FORMS = "ask by response_format, structured_outputs, regex, choice or grammar"
FILTERS = "use temperature, top_p, top_k and min_p"

# The field, and what to do instead.
NOT_HERE: Mapping[str, str] = {
    **dict.fromkeys(("structural_tag", "guided_whitespace_pattern"), FORMS),
    **dict.fromkeys(("samplers", "dynatemp_range", "top_n_sigma", "min_keep", "tfs_z", "typical"), FILTERS),
    **dict.fromkeys(("custom_logit_processor", "logits_processors", "vllm_xargs"), "the server runs nobody's code"),
    **dict.fromkeys(("n_predict", "max_new_tokens"), "it is called max_tokens here"),
    "n_cmpl": "it is called n here",
    "t_max_predict_ms": "give max_tokens",
    "stop_regex": "stop takes texts alone",
    "no_stop_trim": "it is called include_stop_str_in_output here",
    "skip_special_tokens": "a text has no special tokens: logprobs name them",
    "add_special_tokens": "send ids, which /tokenize gives with and without them",
    "return_tokens_as_token_ids": "logprobs have the texts and bytes of tokens",
    "repetition_detection": "use repetition_penalty, presence_penalty or frequency_penalty",
    "bad_words": "forbid tokens by logit_bias",
    "allowed_token_ids": "say by regex, choice or grammar what may be written",
    "use_beam_search": "the server draws, or takes the most probable token",
    "truncate_prompt_tokens": "prompts are never cut: send less",
    "prompt_embeds": "the server reads text and ids alone",
    "repeat_penalty": "it is called repetition_penalty here",
    "mirostat": FILTERS,
    "typical_p": FILTERS,
    "xtc_probability": FILTERS,
    "dry_multiplier": "use repetition_penalty, presence_penalty or frequency_penalty",
    "lora": "an adapter is named as the model",
}
# The values by which they ask for nothing, which clients send along.
NOTHING: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("mirostat", "dry_multiplier", "xtc_probability", "dynatemp_range", "min_keep"), (0,)),
    **dict.fromkeys(("bad_words", "lora", "logits_processors"), ([],)),
    **dict.fromkeys(("use_beam_search", "no_stop_trim", "return_tokens_as_token_ids"), (False,)),
    **dict.fromkeys(("t_max_predict_ms", "top_n_sigma"), (0, -1)),
    "skip_special_tokens": (True,),
    "vllm_xargs": ({},),
    "n_predict": (-1,),
    **dict.fromkeys(("typical_p", "typical", "tfs_z", "repeat_penalty", "n_cmpl"), (1,)),
}
