"""What two processes serve with one model: an engine, one whose follower fails, and `llamita serve --tp 2`."""

import json
import os
import signal
import threading
import time
import urllib.request
from typing import Any
from urllib.error import URLError

from llamita.cli.main import main
from llamita.engine import follower
from llamita.engine.engine import Engine
from llamita.engine.limits import EngineLimits
from llamita.errors import LlamitaError
from llamita.llm import LLM
from llamita.loader import load
from llamita.parallel import mesh
from llamita.parallel.followers import LostProcess, follow, lead
from llamita.parallel.mesh import Degrees, processes

# Few blocks, so that requests are preempted and beginnings are shared and copied.
LIMITS = EngineLimits(max_num_seqs=4, max_num_batched_tokens=16, num_blocks=9)
PROMPTS = ["Once upon a time", "The little llama was", "Once upon a time there", "Once upon a tide", "Hello"]
OPTIONS: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24, "prompt_logprobs": 1}
BODY = {"model": "small", "prompt": "Once upon", "max_tokens": 5, "temperature": 0, "receipt": True}


def serving(folder: str, first_port: str, second_port: str) -> dict[str, Any]:
    """What this process has to say of each."""
    found: dict[str, Any] = {}
    with processes(Degrees(tp=2)) as found_mesh:
        llm = load(folder, device_mesh=found_mesh, device="cpu")
        if mesh.is_first():
            found = {"written": written(llm), "misplaced": said(llm.follow), "lost": leading_a_failure(llm)}
        else:
            found = {"misplaced": said(llm.engine)}
            llm.follow()
            found["lost"] = following_with_a_failure(llm)
    os.environ["MASTER_PORT"] = first_port
    return found | {"command": served(folder, second_port)}


def written(llm: LLM) -> dict[str, Any]:
    """Texts of an engine, all at once, with what else its model is asked."""
    with llm.engine(LIMITS) as engine:
        handles = [engine.submit(prompt, **OPTIONS) for prompt in PROMPTS]
        texts = [handle.result() for handle in handles]
        states = engine.call(lambda: engine.last_hidden_state([1, 2, 3])).result()
        return {
            "tokens": [text.token_ids for text in texts],
            "prompts": [[round(token.logprob, 4) for token in text.prompt_logprobs or ()] for text in texts],
            "states": states.clone(),
            "facts": engine.facts(),
            "preemptions": engine.stats.preemptions,
        }


def leading_a_failure(llm: LLM) -> str:
    """How a request ends whose pass fails in the other process."""
    with Engine(llm._texts, LIMITS, followers=lead(wait=3.0)) as engine:
        return said(engine.submit("Once upon a time", temperature=0.0, max_tokens=24).result)


def following_with_a_failure(llm: LLM) -> str:
    """Fail in the second pass."""
    passes, plain = [0], follower.Follower.logits

    def failing(one: follower.Follower, rows: Any) -> None:
        passes[0] += 1
        if passes[0] == 2:
            raise RuntimeError("no memory for this")
        plain(one, rows)

    commands = follow(wait=3.0)
    follower.COMMANDS = {**follower.COMMANDS, "logits": failing}
    return said(lambda: follower.run(llm.model, commands))


def served(folder: str, port: str) -> dict[str, Any]:
    """The exit code of the command line, and what the first process's port has answered before its SIGTERM."""
    answers: list[dict[str, Any]] = []
    if mesh.rank() == 0:
        threading.Thread(target=lambda: answers.append(_asked(port)), daemon=True).start()
    words = ["serve", "--tp", "2", "-m", folder, "--alias", "small", "--port", port, "--device", "cpu", "-q"]
    return {"code": main([*words, "--kv-blocks", "16"]), "answers": answers}


def _asked(port: str) -> dict[str, Any]:
    """Ask once the server listens, then stop it."""
    body, headers = json.dumps(BODY).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body, headers)
    while True:
        try:
            with urllib.request.urlopen(request, timeout=100) as answer:
                found = json.loads(answer.read())
        except URLError:  # nobody listens yet
            time.sleep(0.2)
            continue
        os.kill(os.getpid(), signal.SIGTERM)
        return found


def said(call: Any) -> str:
    """The sentence of an error."""
    try:
        call()
    except (LlamitaError, LostProcess) as error:
        return str(error)
    return ""
