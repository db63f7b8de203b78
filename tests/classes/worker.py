"""Types of models tried in processes of their own, with a limit of time."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

POLL = 0.1


@dataclass
class Running:
    """A process at work.

    Attributes:
        model_type: what it tries.
        process: the process.
        log: lines of JSON that it writes, a stage each.
        start: when it began, in seconds.
    """

    model_type: str
    process: BaseProcess
    log: Path
    start: float


def run(types: Sequence[str], jobs: int, limit: float) -> Iterator[dict[str, Any]]:
    """The results of these types as they come: facts, stages, seconds.

    Processes are forked from one that has imported everything, which saves seconds for each.

    Args:
        types: of models.
        jobs: processes at once.
        limit: seconds that a process may take; what it found until then counts.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.classes.stages"])
    waiting, running = list(types), list[Running]()
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                log = Path(folder, f"{name}.jsonl")
                process = context.Process(target=work, args=(name, str(log)), daemon=True)
                process.start()
                running.append(Running(name, process, log, time.monotonic()))
            time.sleep(POLL)
            for each in list(running):
                late = time.monotonic() - each.start > limit
                if each.process.is_alive() and not late:
                    continue
                running.remove(each)
                yield _ended(each, late)


def _ended(each: Running, late: bool) -> dict[str, Any]:
    """What a process has found until it ended, or was ended."""
    if late and each.process.is_alive():
        each.process.kill()
    each.process.join()
    seconds = time.monotonic() - each.start
    lines = each.log.read_text(encoding="utf-8").splitlines() if each.log.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    facts: Mapping[str, Any] = next((f["facts"] for f in reversed(found) if "facts" in f), {})
    stages = [f["stage"] for f in found if "stage" in f]
    if not any("end" in f for f in found):
        verdict = "timeout" if late else "raw"
        detail = f"{seconds:.0f} s" if late else f"the process ended with {each.process.exitcode}"
        after = f"after {stages[-1]['name']}" if stages else "at the start"
        stages.append({"name": after, "verdict": verdict, "detail": detail, "seconds": 0.0})
    return {"type": each.model_type, **facts, "stages": stages, "seconds": round(seconds, 1)}


def work(model_type: str, log: str) -> None:
    """Try one type, in this process, which then is good for nothing else.

    Args:
        model_type: the type.
        log: file for a line of JSON a stage.
    """
    import torch
    import transformers

    from tests.classes.stages import Trial

    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silent, stream)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    trial = Trial(model_type)
    with open(log, "w", encoding="utf-8", buffering=1) as file:
        for stage in trial.stages():
            line = {"stage": stage.as_dict(), "facts": trial.facts}
            file.write(json.dumps(line) + "\n")
        file.write(json.dumps({"end": True}) + "\n")
