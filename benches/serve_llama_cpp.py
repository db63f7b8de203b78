"""SmolLM2 in llama.cpp, dense and pruned in several ways: tokens per second, size, memory.

``python -m benches.serve_llama_cpp`` writes every file in float16 and in 8 bits, and runs each in
turns with the others, in processes of their own. Units are chosen by magnitude: values make no
difference to speed. Needs the package ``xllamacpp``; fetches SmolLM2 once.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROMPT, NEW = 128, 32
BATCHES = (1, 8)


def main() -> None:
    """Write the files, run them in turns and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benches.serve_llama_cpp", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each file")
    parser.add_argument("--dtypes", default="f16,q8_0", help="with commas")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(options.run)))
        return
    with tempfile.TemporaryDirectory() as folder:
        files = dict(write(Path(folder), options.dtypes.split(",")))
        found: dict[str, list[dict[str, float]]] = {name: [] for name in files}
        for _ in range(options.rounds):
            for name, (file, _) in files.items():
                command = [sys.executable, "-m", "benches.serve_llama_cpp", "--run", str(file)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
        show(files, found)


def write(folder: Path, dtypes: list[str]) -> Iterator[tuple[str, tuple[Path, int]]]:
    """Every way to prune, in every type: a name, the file and the parameters that are left."""
    import fxprune
    from fxprune.hf.open import smollm2
    from fxprune.hf.open.models import load_model
    from fxprune.serve.engine import Pruned, engine

    loaded = load_model("smollm2")
    model: Any = loaded.model
    traced = fxprune.trace(model)
    graph = fxprune.discover(traced)
    scores = fxprune.estimate(model, graph, fxprune.Magnitude())
    blocks = [f"model.layers.{number}:block" for number in range(12, 20)]
    attention = [f"model.layers.{number}:attention" for number in range(8, 28, 2)]

    def without(names: list[str]) -> fxprune.Plan:
        return fxprune.Plan.of(fxprune.discover(fxprune.bypass(traced, names)), {})

    multiple = {"mlp": 32}
    ways = {
        "dense": fxprune.Plan.of(graph, {}),
        "width, global": fxprune.select(graph, scores, 0.2, multiple_of=multiple),
        "width, uniform": fxprune.select(
            graph, scores, 0.2, multiple_of=multiple, ranking="uniform"
        ),
        f"{len(blocks)} blocks": without(blocks),
        f"{len(attention)} attentions": without(attention),
    }
    for name, plan in ways.items():
        small = fxprune.rewrite(traced, plan)
        pruned = Pruned(small, model.config, plan, loaded.tokenizer)
        for dtype in dtypes:
            file = folder / f"{len(list(folder.iterdir()))}.gguf"
            engine("llama.cpp").write(pruned, file, like=smollm2.fetch(), dtype=dtype)
            yield f"{name}, {dtype}", (file, plan.parameters_after)


def run(file: Path) -> dict[str, float]:
    """Tokens per second of prompt and of what comes after, alone and eight at once; peak memory."""
    import xllamacpp

    found = {}
    for batch in BATCHES:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(file)
        parameters.n_parallel, parameters.n_ctx = batch, batch * (PROMPT + NEW + 16)
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = os.cpu_count()
        parameters.warmup, parameters.fit_params, parameters.verbosity = True, False, -1
        server = xllamacpp.Server(parameters)

        def asked(number: int, server: Any = server) -> dict[str, Any]:
            prompt = [100 + (7 * place + 13 * number) % 40000 for place in range(PROMPT)]
            answer = server.handle_completions(
                {"prompt": prompt, "n_predict": NEW, "ignore_eos": True, "cache_prompt": False}
            )
            return json.loads(answer) if isinstance(answer, str) else answer

        with concurrent.futures.ThreadPoolExecutor(batch) as pool:
            times = [answer["timings"] for answer in pool.map(asked, range(batch))]
        prompt = max(each["prompt_ms"] for each in times)
        after = max(each["predicted_ms"] for each in times)
        found[f"prompt {batch}"] = batch * PROMPT / prompt * 1e3
        found[f"new {batch}"] = batch * NEW / after * 1e3
        del server
    # What getrusage says is at least the peak of whoever started this process.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM"))
    found["memory"] = int(peak.split()[1]) * 1024
    return found


def show(files: dict[str, tuple[Path, int]], found: dict[str, list[dict[str, float]]]) -> None:
    """A table in Markdown; speeds as medians of ratios to the dense file of the same turn."""
    names = [f"{kind} {batch}" for batch in BATCHES for kind in ("prompt", "new")]
    print(f"| file | parameters | size | ideal | {' | '.join(names)} | memory |")
    print("| --- " * (len(names) + 5) + "|")
    for name, (file, parameters) in files.items():
        dense = f"dense, {name.rpartition(', ')[2]}"
        size, whole = file.stat().st_size, files[dense][0].stat().st_size
        cells = []
        for key in names:
            pairs = zip(found[name], found[dense], strict=True)
            ratio = statistics.median(one[key] / other[key] for one, other in pairs)
            speed = statistics.median(one[key] for one in found[name])
            cells.append(f"{ratio:.2f} ({speed:.0f}/s)")
        memory = statistics.median(one["memory"] for one in found[name])
        print(
            f"| {name} | {parameters / 1e6:.1f} M | {size / 1e6:.0f} MB | {whole / size:.2f} | "
            f"{' | '.join(cells)} | {memory / 1e6:.0f} MB |"
        )


if __name__ == "__main__":
    main()
