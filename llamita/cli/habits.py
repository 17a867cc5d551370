"""Options and verbs of llama.cpp, vLLM, transformers and Ollama, and what they are called here."""

from collections.abc import Collection, Mapping

# Our option -> what others call it. Underscores are read as dashes before.
SAME: Mapping[str, tuple[str, ...]] = {
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
    "--quantize": ("--quantization", "--quant", "--load-in-8bit", "--load-in-4bit"),
    "--quiet": ("--log-disable", "--no-display-prompt", "--silent"),
    "--regex": ("--guided-regex", "--pattern"),
    "--choice": ("--guided-choice", "--choices"),
    "--repeat-penalty": ("--repetition-penalty",),
    "--seed": ("--random-seed", "--rng-seed"),
    "--stats": ("--verbose", "-v", "--timings"),
    "--stop": ("-r", "--reverse-prompt", "--antiprompt", "--stop-sequence", "--stop-sequences", "--stop-strings"),
    "--system": ("-sys", "--system-prompt", "--system-message", "--sys"),
    "--temperature": ("--temp", "-temp"),
    "--temperature 0": ("--greedy",),
    "--temperature 0.7": ("--do-sample", "--sample"),
    "--threads": ("-tb", "--threads-batch", "--n-threads", "--nthreads", "--num-threads", "--cpu-threads"),
    "--to": ("--quantize", "--quantization", "--quant", "--outtype", "--output-format", "--qtype"),
    "--offline": ("--local-files-only",),
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
    return _advice(NEEDLESS, dashed)


def renamed(name: str) -> str:
    """Our own name of an option of other programs; the name itself where it is none."""
    dashed = name.replace("_", "-")
    return next((ours.partition(" ")[0] for ours, theirs in SAME.items() if dashed in theirs), name)


def verb(name: str) -> str | None:
    """What to write instead of a verb of other programs."""
    return _advice(VERBS, name)


def _advice(table: Mapping[str, tuple[str, ...]], name: str) -> str | None:
    return next((advice for advice, names in table.items() if name in names), None)
