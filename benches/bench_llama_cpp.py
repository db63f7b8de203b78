"""SmolLM2 in llama.cpp, dense and pruned in several ways: tokens per second, size, memory.

``pytest benches/bench_llama_cpp.py -s``; needs the package ``xllamacpp`` and fetches SmolLM2 once.
Every file runs in turns with the dense one of its type, in processes of their own. Units are chosen
by magnitude: values make no difference to speed. The ideal is the ratio of the files' sizes, which
a token reads whole.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benches.sizes import pick

PROMPT, NEW = 128, pick(quick=4, cpu=64)
BATCHES = (1, 8)
ROUNDS = pick(quick=1, cpu=3)
BLOCKS = [f"model.layers.{number}:block" for number in range(12, 20)]
ATTENTION = [f"model.layers.{number}:attention" for number in range(8, 28, 2)]


@pytest.mark.parametrize("dtype", ["f16", "q8_0"])
def test_llama_cpp(bench: Any, tmp_path: Path, dtype: str) -> None:
    pytest.importorskip("xllamacpp")
    files, found = written(tmp_path, dtype), dict[str, list[dict[str, float]]]()
    bench.run(lambda: [measured(file) for file, _ in files.values()])  # warms the file cache
    for number in range(ROUNDS):
        names = list(files)
        for name in names[number:] + names[:number]:
            found.setdefault(name, []).append(measured(files[name][0]))
    whole = files["dense"][0].stat().st_size
    for name, (file, parameters) in files.items():
        size, runs = file.stat().st_size, zip(found[name], found["dense"], strict=True)
        ratios = [{key: one[key] / dense[key] for key in one} for one, dense in runs]
        row: dict[str, Any] = {
            "file": f"{name}, {dtype}",
            "parameters": parameters,
            "size, MB": size / 1e6,
            "memory, MB": statistics.median(each["memory"] for each in found[name]) / 1e6,
            "ideal": whole / size,
        }
        for key in (f"{kind} x {batch}" for batch in BATCHES for kind in ("prompt", "new")):
            row[f"{key}, tokens/s"] = statistics.median(each[key] for each in found[name])
            row[f"{key}, speed-up"] = statistics.median(each[key] for each in ratios)
        bench.row(f"llama.cpp, {PROMPT} + {NEW} tokens, 1 and 8 at once", row)


@functools.cache
def plans() -> Any:
    """The model, its traced graph and every way to prune it to a fifth less, or so, by name."""
    import fxprune
    from fxprune.hf.open.models import load_model

    loaded = load_model("smollm2")
    traced = fxprune.trace(loaded.model)
    graph = fxprune.discover(traced)
    scores = fxprune.estimate(loaded.model, graph, fxprune.Magnitude())
    multiple = {"mlp": 32}
    ways = {
        "dense": fxprune.Plan.of(graph, {}),
        "20 % width, global": fxprune.select(graph, scores, 0.2, multiple_of=multiple),
        "20 % width, uniform": fxprune.select(
            graph, scores, 0.2, multiple_of=multiple, ranking="uniform"
        ),
    }
    for name, removed in (("8 blocks removed", BLOCKS), ("10 attentions removed", ATTENTION)):
        short = fxprune.bypass(traced, removed)
        ways[name] = fxprune.Plan.of(fxprune.discover(short), {})
    return loaded, traced, ways


def written(folder: Path, dtype: str) -> dict[str, tuple[Path, int]]:
    """A file of every way in one type, and the parameters that are left."""
    import fxprune
    from fxprune.hf.open import smollm2
    from fxprune.serve.engine import Pruned, engine

    loaded, traced, ways = plans()
    found = {}
    for name, plan in ways.items():
        small = fxprune.rewrite(traced, plan)
        pruned = Pruned(small, loaded.model.config, plan, loaded.tokenizer)
        file = folder / f"{len(found)}.gguf"
        engine("llama.cpp").write(pruned, file, like=smollm2.fetch(), dtype=dtype)
        found[name] = file, plan.parameters_after
    return found


def measured(file: Path) -> dict[str, float]:
    """What :func:`run` gives in a process of its own."""
    command = [sys.executable, "-m", "benches.bench_llama_cpp", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(file: Path) -> dict[str, float]:
    """Tokens per second of prompts and of what comes after, alone and eight at once; peak memory.

    The prompts are read first and stay in the cache, so that no prompt is read while others write.
    """
    import xllamacpp

    found = {}
    for batch in BATCHES:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(file)
        parameters.n_parallel, parameters.n_ctx = batch, batch * (PROMPT + NEW + 16)
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = os.cpu_count()
        parameters.warmup, parameters.fit_params, parameters.verbosity = True, False, -1
        server = xllamacpp.Server(parameters)

        def asked(number: int, count: int, server: Any = server) -> None:
            prompt = [100 + (7 * place + 13 * number) % 40000 for place in range(PROMPT)]
            server.handle_completions(
                {
                    "prompt": prompt,
                    "n_predict": count,
                    "ignore_eos": True,
                    "cache_prompt": True,
                    "id_slot": number,
                }
            )

        with concurrent.futures.ThreadPoolExecutor(batch) as pool:
            for kind, count, tokens in (("prompt", 1, PROMPT), ("new", NEW, NEW)):
                start = time.perf_counter()
                list(pool.map(functools.partial(asked, count=count), range(batch)))
                seconds = time.perf_counter() - start
                found[f"{kind} x {batch}"] = batch * tokens / seconds
        del server
    # What getrusage says is at least the peak of whoever started this process.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM"))
    found["memory"] = int(peak.split()[1]) * 1024
    return found


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]))))
