"""What users of transformers, vLLM, llama.cpp and Ollama write in Python, and what to write here."""

from collections.abc import Collection, Mapping

# A name that is imported from other libraries, and what to use here.
NAMES: Mapping[str, str] = {
    "LlamaTokenizer": "AutoTokenizer.from_pretrained(name)",
    "LlamaTokenizerFast": "AutoTokenizer.from_pretrained(name)",
    "PreTrainedTokenizerFast": "AutoTokenizer.from_pretrained(name)",
    "AutoModel": "LlamaModel",
    "AutoModelForSequenceClassification": "LlamaForSequenceClassification",
    "AutoModelForTokenClassification": "LlamaForTokenClassification",
    "AutoModelForQuestionAnswering": "LlamaForQuestionAnswering",
    "MistralForCausalLM": "LlamaForCausalLM, which reads Mistral's files",
    "MistralConfig": 'LlamaConfig with model_type="mistral"',
    "GenerationConfig": "a dictionary: model.generate(ids, generation_config={...})",
    "AutoPeftModelForCausalLM": "llamita.load(name, adapter=folder)",
    "SamplingParams": "options of generate: llamita.load(name).generate(prompts, temperature=0.7, max_tokens=64)",
    "LLMEngine": "llamita.load(name).engine()",
    "AsyncLLMEngine": "llamita.load(name).engine()",
    "BitsAndBytesConfig": 'llamita.load(name, quantize="q8_0")',
    "GPTQConfig": 'llamita.load(name, quantize="q4_k_m")',
    "AwqConfig": 'llamita.load(name, quantize="q4_k_m")',
    "TorchAoConfig": 'llamita.load(name, quantize="q8_0")',
    "TextStreamer": "llamita.load(name).stream(text), or transformers' own with model.generate",
    "TextIteratorStreamer": "llamita.load(name).stream(text), or transformers' own with model.generate",
    "StoppingCriteria": "a function (ids, scores) -> bool in stopping_criteria=[...], or stop_strings",
    "LogitsProcessor": "a function (ids, scores) -> scores in logits_processor=[...]",
    "pipeline": "transformers.pipeline with a model of llamita's, or llamita.load(name).generate(text)",
    "Trainer": "transformers.Trainer with llamita.bridge.trainable.trainable(model)",
    "TrainingArguments": "transformers.TrainingArguments",
    "SFTTrainer": "llamita finetune on the command line",
    "DPOTrainer": "llamita finetune --method dpo on the command line",
    "GRPOTrainer": "llamita finetune --method grpo on the command line",
    "get_peft_model": "llamita.add_lora(model, llamita.LoraConfig(r=8)), or peft.get_peft_model",
    "PeftModel": "llamita.load_adapter(model, folder), or peft.PeftModel",
    "Llama": "llamita.load(path)",
    "set_seed": "torch.manual_seed, or seed= of generate",
    "generate": "llamita.load(name).generate(text)",
    "chat": "llamita.load(name).chat(messages)",
    "from_pretrained": "llamita.load(name), or LlamaForCausalLM.from_pretrained(name)",
}
# What to do -> options of `load`.
LOADING: Mapping[str, Collection[str]] = {
    "the model's name comes first, llamita.load(name)": ("model", "model_path", "model_id", "path"),
    "write dtype": ("torch_dtype", "precision"),
    'write device, such as device="cuda"': ("device_map", "n_gpu_layers"),
    'write quantize, such as quantize="q8_0"': (
        *("quantization", "quantization_config", "load_in_8bit", "load_in_4bit", "bits"),
    ),
    "write draft": ("draft_model", "speculative_model", "speculative_config", "assistant_model"),
    "write adapter": ("lora_path", "enable_lora", "lora"),
    "write offline": ("local_files_only",),
    "write compile": ("torch_compile", "enforce_eager"),
    "write device_mesh": ("tensor_parallel_size", "tp_size", "tp_plan"),
    "a cache grows as it fills, leave it out": ("n_ctx", "max_model_len", "max_seq_len", "gpu_memory_utilization"),
    "weights are always mapped from their files, leave it out": ("use_mmap", "use_mlock", "low_cpu_mem_usage"),
    "no code of a checkpoint is ever run, leave it out": ("trust_remote_code",),
    "the checkpoint's own chat template is taken, leave it out": ("chat_format", "chat_template"),
    "llm.engine(EngineLimits(...)) takes limits": ("max_num_seqs", "max_num_batched_tokens"),
    "each call takes its own, llm.generate(prompt, seed=1)": ("seed", "temperature", "max_tokens"),
    "set HF_TOKEN in the environment": ("token", "hf_token", "use_auth_token"),
    "set HF_HOME in the environment": ("cache_dir", "download_dir"),
    "call torch.set_num_threads": ("n_threads", "num_threads", "threads"),
}
# What to do -> options of `generate`.
WRITING: Mapping[str, Collection[str]] = {
    "write max_tokens": ("max_new_tokens", "max_length", "num_predict", "n_predict", "max_completion_tokens"),
    "write min_tokens": ("min_new_tokens", "min_length"),
    "write temperature": ("temp",),
    "write repetition_penalty": ("repeat_penalty",),
    "write stop": ("stop_strings", "stop_sequences", "antiprompt"),
    "write json_schema, regex, grammar or choice": (
        *("response_format", "structured_outputs", "guided_decoding", "guided_json", "guided_regex", "guided_grammar"),
        *("guided_choice", "format"),
    ),
    "any of temperature, top_k, top_p and min_p makes the model draw, leave it out": ("do_sample",),
    "give the prompt several times: llm.generate([prompt] * 3, seed=[1, 2, 3])": (
        *("n", "num_return_sequences", "best_of"),
    ),
    "llm.stream(prompt) gives the pieces of a text as they are written": ("stream", "streamer"),
    "llm.chat(messages) takes a conversation": ("system", "messages", "add_generation_prompt"),
    "llm.chat(messages, tools=tools) takes tools": ("tools", "tool_choice"),
    "its fields are options of their own: max_tokens=64, temperature=0.7": (
        *("sampling_params", "generation_config", "options"),
    ),
    "the text is that of the answer alone, without special tokens: leave it out": (
        *("skip_special_tokens", "return_full_text", "echo"),
    ),
    "a text ends with the checkpoint's end tokens: logit_bias={token_id: -1e9} forbids one": (
        *("ignore_eos", "eos_token_id", "stop_token_ids"),
    ),
    "a cache grows as it fills: leave it out": ("num_ctx", "n_ctx", "max_model_len", "cache_prompt", "use_cache"),
    "prompts of one call are written together: leave it out": ("batch_size", "use_tqdm"),
    "call torch.set_num_threads": ("threads", "num_threads", "n_threads", "num_thread"),
    "llm.engine().submit(prompt, adapter=name) takes adapters": ("lora_request",),
}
