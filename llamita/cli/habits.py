"""Options and verbs of llama.cpp, vLLM, transformers and Ollama, and what they are called here."""

from collections.abc import Collection, Mapping

from llamita.checks import advice

# Our option -> what others call it. Underscores are read as dashes before. A verb's first row counts.
SAME: Mapping[str, tuple[str, ...]] = {
    "--lr": ("--learning-rate",),
    "--steps": ("--max-steps", "--max-iters", "--iters", "--num-steps", "--train-steps"),
    "--batch-tokens": ("--batch-size", "--train-batch-size", "--gradient-accumulation-steps", "--total-batch-size"),
    "--micro-rows": ("--per-device-train-batch-size", "--micro-batch-size", "--device-batch-size"),
    "--length": (
        *("--max-seq-length", "--max-seq-len", "--seq-len", "--block-size", "--cutoff-len", "--sequence-len"),
        *("--max-length", "-c", "--ctx-size", "--context-length"),
    ),
    "--warmup": ("--warmup-steps", "--warmup-ratio", "--warmup-iters"),
    "--schedule": ("--lr-scheduler-type", "--lr-scheduler", "--scheduler"),
    "--save-every": ("--save-steps", "--save-interval"),
    "--evaluate-every": ("--eval-steps", "--eval-interval", "--eval-every", "--steps-per-eval"),
    "--keep-checkpoints": ("--save-total-limit",),
    "--precision bf16": ("--bf16",),
    "--precision": ("--fp16", "--mixed-precision", "--dtype", "--torch-dtype"),
    "--rank": ("--lora-r", "--lora-rank", "-r"),
    "--alpha": ("--lora-alpha",),
    "--targets": ("--target-modules", "--lora-target", "--lora-target-modules"),
    "--method qlora": ("--load-in-4bit", "--load-in-8bit", "--quantize", "--quantization", "--qlora", "--bits"),
    "--method lora": ("--lora", "--use-lora", "--peft", "--use-peft"),
    "--method": ("--fine-tune-type", "--finetuning-type", "--peft-type", "--train-type"),
    "--recompute full": ("--gradient-checkpointing", "--grad-checkpoint", "--activation-checkpointing"),
    "--clip": ("--max-grad-norm", "--grad-clip", "--clip-grad-norm"),
    "--optimizer": ("--optim",),
    "--held-out": ("--val-split", "--val-set-size", "--validation-split", "--test-size"),
    "--shape": ("--n-layer", "--num-layers", "--dim", "--hidden-size", "--n-embd", "--preset"),
    "--resume": ("--resume-from-checkpoint", "--resume-from"),
    "--tensorboard": ("--report-to", "--wandb", "--logging-dir"),
    "--output": ("--output-dir", "--out-dir", "--save-dir", "--out-file", "--outfile", "--output-file", "-of"),
    "--tp": ("-tp", "--tensor-parallel-size"),
    "--replicas": ("-dp", "--data-parallel-size", "--workers"),
    "--adapter": ("--lora", "--lora-modules", "--lora-scaled", "--lora-path", "--enable-lora", "--adapter-path"),
    "--speculative-tokens": ("--num-speculative-tokens", "--speculative-config", "--draft-max", "--draft-n"),
    "--log-level debug": ("--verbose", "-v", "-lv", "--log-verbosity"),
    "--log-level": ("--uvicorn-log-level",),
    "--log-level warning": ("--disable-log-requests", "--no-enable-log-requests", "--disable-log-stats"),
    "--logprobs": ("--n-probs", "--top-logprobs"),
    "--alias": ("-a", "--served-model-name"),
    "--attn": ("--attn-implementation", "--attention-backend", "-fa", "--flash-attn"),
    "--device cpu": ("--cpu", "--no-gpu", "--use-cpu"),
    "--device cuda": ("--gpu", "--cuda"),
    "--draft-model": ("-md", "--model-draft", "--draft", "--speculative-model", "--assistant-model"),
    "--dtype": ("--torch-dtype", "--precision"),
    "--grammar": ("--grammar-file", "--guided-grammar"),
    "--json": ("--no-stream",),
    "--json-schema": ("-j", "-jf", "--json-schema-file", "--format", "--guided-json", "--response-format"),
    "--kv-blocks": ("--num-gpu-blocks-override",),
    "--max-model-len": (
        *("-c", "--ctx-size", "--ctx", "--n-ctx", "--num-ctx", "--context-size", "--context-length", "--max-seq-len"),
        "--max-context",
    ),
    "--max-num-seqs": ("-np", "--parallel", "--max-running-requests", "--max-concurrent-requests"),
    "--max-num-queued": ("--max-num-queued-reqs", "--max-queued-requests"),
    "--max-tokens": (
        *("--n-predict", "--predict", "--num-predict", "--max-new-tokens", "--max-length", "--max-completion-tokens"),
        *("--tokens", "--length", "--num-tokens", "--max-gen-len"),
    ),
    "--model": (
        *("-hf", "-hfr", "--hf-repo", "--hf", "-mu", "--model-url", "--model-path", "--model-id", "--model-name"),
        *("--model-name-or-path", "--pretrained-model-name-or-path", "--checkpoint", "--ckpt", "--ckpt-dir"),
    ),
    "--quantize": ("--quantization", "--quant", "--load-in-8bit", "--load-in-4bit", "--bits"),
    "--quiet": ("--log-disable", "--no-display-prompt", "--silent"),
    "--regex": ("--guided-regex", "--pattern"),
    "--choice": ("--guided-choice", "--choices"),
    "--repeat-penalty": ("--repetition-penalty",),
    "--seed": ("--random-seed", "--rng-seed"),
    "--stats": ("--verbose", "-v", "--timings", "--perf"),
    "--stop": ("-r", "--reverse-prompt", "--antiprompt", "--stop-sequence", "--stop-sequences", "--stop-strings"),
    "--system": ("-sys", "--system-prompt", "--system-message", "--sys"),
    "--temperature": ("--temp", "-temp"),
    "--temperature 0": ("--greedy",),
    "--temperature 0.7": ("--do-sample", "--sample"),
    "--threads": ("-tb", "--threads-batch", "--n-threads", "--nthreads", "--num-threads", "--cpu-threads"),
    "--to": ("--quantize", "--quantization", "--quant", "--outtype", "--output-format", "--qtype", "--type", "--ftype"),
    "--offline": ("--local-files-only",),
    "--quick": ("--fast", "--short"),
}
# What has no counterpart -> why it needs none, and what to do.
NEEDLESS: Mapping[str, tuple[str, ...]] = {
    "the context is as long as the model's own and its cache grows as it fills, leave it out": (
        *("-c", "--ctx-size", "--ctx", "--n-ctx", "--num-ctx", "--context-size", "--context-length", "--context"),
        *("--max-model-len", "--max-seq-len", "--max-context"),
    ),
    "the whole model goes to one device, leave it out or write --device cuda": (
        *("-ngl", "--gpu-layers", "--n-gpu-layers", "--num-gpu", "-sm", "--split-mode", "-ts", "--tensor-split", "-mg"),
        *("--main-gpu", "--device-map", "-tp", "--tensor-parallel-size", "--pipeline-parallel-size"),
    ),
    "pipe the file in: llamita generate < FILE": ("-f", "--file", "--prompt-file", "--in-file", "--input-file"),
    "write > FILE after the command": ("-o", "--output", "-of", "--out-file", "--output-file"),
    "how a prompt is cut into passes changes nothing, leave it out": (
        *("-b", "--batch-size", "-ub", "--ubatch-size", "--n-batch", "--max-num-seqs", "--max-num-batched-tokens"),
    ),
    "memory is taken as it is needed, leave it out": ("--gpu-memory-utilization", "--max-memory", "--swap-space"),
    "weights are always mapped from their files, leave it out": (
        *("--mmap", "--no-mmap", "--mlock", "--low-cpu-mem-usage", "--load-format"),
    ),
    "llamita chat talks, llamita generate continues a text, leave it out": (
        *("-cnv", "--conversation", "-no-cnv", "--no-conversation", "-i", "--interactive", "-if", "-st"),
        *("--interactive-first", "--single-turn", "-cml", "--chatml", "--instruct"),
    ),
    "the checkpoint's own chat template is taken, leave it out": ("--jinja", "--chat-template", "--chat-template-file"),
    "no code of a checkpoint is ever run, leave it out": ("--trust-remote-code",),
    "set HF_TOKEN in the environment": ("--token", "--hf-token", "-hft", "--use-auth-token"),
    "colours come by themselves on a terminal, NO_COLOR=1 turns them off": ("--color", "--colour", "-co"),
    "text always comes as it is written, leave it out": ("--stream", "--streaming"),
    "only a terminal gets wrapped lines, leave it out": ("--nowordwrap", "--wordwrap"),
    "beams are for Python: model.generate(ids, num_beams=4)": ("--num-beams", "--beams", "--beam-width"),
    "revisions are for Python: llamita.load(name, revision=...)": ("--revision", "--branch"),
    "llamita serve listens, leave it out": ("--host", "--port", "--api-key"),
    "name the files of the data as words, llamita finetune data.jsonl": (
        *("--dataset", "--dataset-name", "--data", "--data-path", "--train-file", "--train-data", "--dataset-dir"),
    ),
    "say how long by --minutes or --steps": ("--num-train-epochs", "--epochs", "--num-epochs", "--n-epochs"),
    "adapters are trained without dropout, leave it out": ("--lora-dropout",),
    "every step is shown and logged, leave it out": ("--logging-steps", "--log-interval", "--log-every"),
    "documents are always packed, leave it out": ("--packing", "--sample-packing"),
    "torchrun starts processes, which share a model by FSDP2, leave it out": (
        *("--fsdp", "--deepspeed", "--ddp", "--num-processes", "--num-gpus", "--nproc-per-node"),
    ),
    "nothing is uploaded, hf upload org/name FOLDER does that": ("--push-to-hub", "--hub-model-id", "--hf-path"),
    "AdamW's betas are 0.9 and 0.95, leave it out": ("--adam-beta1", "--adam-beta2", "--adam-epsilon"),
    "tool calls are always read, and held to their schemas, leave it out": (
        *("--enable-auto-tool-choice", "--tool-call-parser", "--tool-parser-plugin"),
    ),
    "texts that begin alike always share their cache, leave it out": (
        *("--enable-prefix-caching", "--no-enable-prefix-caching", "--cache-reuse", "--prompt-cache", "--keep"),
    ),
    "requests always run together, leave it out": ("-cb", "--cont-batching", "--enable-chunked-prefill"),
    "the page, /metrics and /v1/embeddings are always there, leave it out": (
        *("--embedding", "--embeddings", "--metrics", "--webui", "--no-webui", "--slots", "--props"),
    ),
    "the cache has the dtype of the model, leave it out": (
        *("--kv-cache-dtype", "-ctk", "-ctv", "--cache-type-k", "--cache-type-v"),
    ),
    "put a proxy with TLS in front": ("--ssl-keyfile", "--ssl-certfile", "--ssl-key-file", "--ssl-cert-file"),
    "rotary settings are the checkpoint's own, leave it out": (
        *("--rope-scaling", "--rope-freq-base", "--rope-freq-scale", "--rope-scale", "--yarn-ext-factor"),
    ),
    "nothing is compiled unless --compile says so, leave it out": ("--enforce-eager",),
    "models go to the cache of the hub, which HF_HOME names": ("--download-dir", "--cache-dir", "--models-dir"),
    "--unload-idle MINUTES of llamita serve unloads a model": ("--keep-alive",),
    "the shell writes escapes, $'a\\nb'": ("-e", "--escape"),
    'a message of several lines stands between """ and """': ("-mli", "--multiline-input"),
    "a text ends with the checkpoint's end tokens, leave it out": ("--ignore-eos",),
    "it is for Python: llm.model.generate has transformers' settings, mirostat, DRY and XTC": (
        *("--mirostat", "--mirostat-ent", "--mirostat-lr", "--typical", "--typical-p", "--xtc-probability"),
        *("--xtc-threshold", "--dry-multiplier", "--dry-base", "--top-nsigma", "--repeat-last-n", "--logit-bias"),
        *("--samplers", "--sampling-seq", "--no-repeat-ngram-size", "--num-return-sequences"),
    ),
}
# What others call a verb -> what to write.
VERBS: Mapping[str, tuple[str, ...]] = {
    'llamita chat -m MODEL talks with a model, llamita generate -m MODEL "..." continues a text': ("run", "start"),
    "nothing is to be fetched beforehand, -m org/name fetches a model at its first use": (
        *("pull", "download", "get", "fetch", "install"),
    ),
    "models lie in the cache of the hub, hf cache ls lists them": ("list", "ls", "ps", "models"),
    "models lie in the cache of the hub, hf cache rm removes one": ("rm", "remove", "delete", "prune"),
    "write llamita serve": ("server", "api", "web", "openai"),
    "write llamita train": ("pretrain",),
    "write llamita finetune": ("fine-tune", "sft", "lora", "dpo", "align"),
    "write llamita generate": ("complete", "completion", "completions", "cli", "infer", "predict", "write", "sample"),
    "write llamita chat": ("talk", "converse", "ask", "interactive"),
    "write llamita show": ("info", "inspect", "describe", "card", "cat", "metadata"),
    "write llamita convert": ("export", "transform", "save"),
    "write llamita quantize": ("quant", "quantise", "compress"),
    "write llamita verify": ("check", "test", "compare", "validate"),
    "write llamita bench": ("benchmark", "perf", "speed"),
    "write llamita train rewind --step N": ("rewind",),
    "write llamita eval": ("perplexity", "ppl", "evaluate", "score", "lm-eval", "lm_eval"),
    "write llamita tokenize": ("tokens", "tokenizer", "tokenise"),
}


def option(name: str, own: Collection[str]) -> str | None:
    """What to do instead of an option of other programs, where `own` are the options of a verb; None for no habit."""
    dashed = name if name in own else name.replace("_", "-")
    if dashed in own and dashed != name:
        return f"write {dashed}"
    for ours, theirs in SAME.items():
        if dashed in theirs and ours.partition(" ")[0] in own:
            return f"write {ours}"
    return advice(dashed, NEEDLESS)


def renamed(name: str) -> str:
    """Our own name of an option of other programs; the name itself where it is none."""
    dashed = name.replace("_", "-")
    return next((ours.partition(" ")[0] for ours, theirs in SAME.items() if dashed in theirs), name)


def verb(name: str) -> str | None:
    """What to write instead of a verb of other programs."""
    return advice(name, VERBS)
