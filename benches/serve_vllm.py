"""Whether vLLM computes what is left of a pruned model, in its own environment.

``python -m benches.serve_vllm FOLDER`` prunes and writes models for vLLM, with what transformers
computes; ``python benches/serve_vllm.py --read FOLDER`` runs them where vLLM is (fxprune need not
be) and prints a line of JSON for each; the exit status tells whether all agree.
``benches/serve_vllm.sh`` makes that environment and does both.

``--fuzz 200`` writes what random plans leave of tiny models instead, where the engine of ``--for``
takes them; an engine of transformers is read by vLLM's back-end for that.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TEXT = Path(__file__).parents[1] / "README.md"
PROMPT = "The capital of France is"
NEW, TOP, TOLERANCE = 16, 20, 0.05
LENGTH, FUZZ_LENGTH, FUZZ_NEW = 256, 64, 6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--read", action="store_true")
    parser.add_argument("--fuzz", type=int, metavar="PLANS", help="random plans, so many")
    parser.add_argument("--seed", type=int, default=0, help="of random plans")
    parser.add_argument("--for", dest="name", default="vllm", help="the engine of random plans")
    options = parser.parse_args()
    if options.read:
        found = [_tried(case, options.folder) for case in _cases(options.folder)]
        print(json.dumps({"run": len(found), "right": sum(found)}))
        return 0 if found and all(found) else 1
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.fuzz:
        write_random(options.folder, options.name, options.fuzz, options.seed)
    else:
        write(options.folder)
    return 0


def _cases(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "cases.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


# In the environment of fxprune.


def write(folder: Path) -> None:
    """SmolLM2 with MLPs of their own widths, without two attention branches, with own heads."""
    import fxprune
    from fxprune.hf.open.models import load_model
    from fxprune.serve.engine import Pruned, engine

    loaded = load_model("smollm2")
    model, tokenizer = loaded.model, loaded.tokenizer
    scored = {"criterion": "wanda-sp", "pruning_ratio": "10%", "compensation": None}
    text = {"calibration": str(TEXT), "calibration_samples": 8, "calibration_lengths": (128,)}
    branches = {"depth": fxprune.Depth(remove=2, unit="attention"), "depth_criterion": "magnitude"}
    for name, options in (
        ("branches", {"kinds": ("mlp",), **branches}),
        ("widths", {"kinds": ("mlp",)}),
        ("heads", {}),
    ):
        done = fxprune.prune(model, tokenizer=tokenizer, **scored, **text, **options)
        small = _in_transformers(model, done.plan)
        case = {"name": name, "removed": done.plan.removed, **_sizes(done.plan)}
        if name == "heads":  # for which vLLM takes the folder of transformers
            fxprune.save(small, folder / name, plan=done.plan, tokenizer=tokenizer)
            case["engine"] = {"model_impl": "transformers"}
        else:
            pruned = Pruned(done.graph_module, model.config, done.plan, tokenizer)
            engine("vllm").write(pruned, folder / name)
        _keep(folder, case | _expected(small, tokenizer))


def write_random(folder: Path, name: str, count: int, seed: int) -> None:
    """What random plans leave of tiny models; those that are refused are counted."""
    from fxprune.serve.engine import engine
    from tests.serve.fuzz import tried
    from tests.serve.models import WIDE

    draw = random.Random(seed)
    for number in range(count):
        model = draw.choice((*WIDE, "qwen3", "mixtral"))
        kept = functools.partial(_keep_folder, folder, f"{number}-{model}", name)
        tried(engine(name), model, draw.getrandbits(32), kept)
    written = len(_cases(folder))
    print(json.dumps({"plans": count, "written": written, "refused": count - written}))


def _keep_folder(
    folder: Path, case: str, name: str, how: str, path: Path, small: Any, example: Any
) -> None:
    """Keep what a plan leaves, with the tokens that it goes on with."""
    import torch

    shutil.move(path, folder / case)
    ids = prompt = example[1]["input_ids"][:1]
    steps = []
    for _ in range(FUZZ_NEW):
        with torch.no_grad():
            steps.append(_best(small(input_ids=ids).logits[0, -1]))
        ids = torch.cat([ids, torch.tensor([[int(next(iter(steps[-1])))]])], dim=1)
    made: dict[str, Any] = {"skip_tokenizer_init": True}
    if name.startswith("transformers"):
        made["model_impl"] = "transformers"
    said = {"name": case, "length": FUZZ_LENGTH, "steps": steps, "text": "", "engine": made}
    tokens = ids[0, prompt.shape[1] :].tolist()
    _keep(folder, said | {"prompt": prompt[0].tolist(), "tokens": tokens})


def _best(logits: Any) -> dict[str, float]:
    """The log-probabilities of the best tokens, the best first."""
    best = logits.float().log_softmax(-1).topk(TOP)
    return dict(zip(map(str, best.indices.tolist()), best.values.tolist(), strict=True))


def _sizes(plan: Any) -> dict[str, list[int]]:
    """What the groups of each kind keep at least and at most, of those that lose units."""
    kept: dict[str, list[int]] = {}
    for name, units in plan.kept.items():
        kept.setdefault(name.rpartition(":")[2], []).append(len(units))
    return {kind: [min(counts), max(counts)] for kind, counts in kept.items()}


def _in_transformers(model: Any, plan: Any) -> Any:
    """The smaller model in its own class, where attention that was removed adds nothing."""
    from dataclasses import replace

    import torch

    import fxprune

    small = fxprune.shrink(model, replace(plan, removed=()))
    with torch.no_grad():
        for name in plan.removed:
            small.get_submodule(name.partition(":")[0]).self_attn.o_proj.weight.zero_()
    return small


def _expected(model: Any, tokenizer: Any) -> dict[str, Any]:
    """The tokens that a model goes on with, and the log-probabilities of the best at each."""
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    made = model.generate(
        ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    steps = [_best(logits[0]) for logits in made.logits]
    tokens = made.sequences[0, ids.shape[1] :].tolist()
    text = tokenizer.decode(tokens)
    return {"prompt": ids[0].tolist(), "tokens": tokens, "steps": steps, "text": text}


def _keep(folder: Path, case: dict[str, Any]) -> None:
    with (folder / "cases.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(case) + "\n")


# In the environment of vLLM.


def _tried(case: dict[str, Any], folder: Path) -> bool:
    try:
        return run(case, folder)
    except Exception as error:  # whatever vLLM says of a model that it does not take
        why = str(error).strip().splitlines() or [type(error).__name__]
        print(json.dumps({"name": case["name"], "right": False, "error": why[0]}), flush=True)
        return False


def run(case: dict[str, Any], folder: Path) -> bool:
    """Whether vLLM goes on with the same tokens, at near the same log-probabilities."""
    import vllm

    model = vllm.LLM(
        str(folder / case["name"]),
        trust_remote_code=True,
        enforce_eager=True,
        dtype="float32",
        max_model_len=case.get("length", LENGTH),
        max_logprobs=TOP,
        **case.get("engine", {}),
    )
    options = vllm.SamplingParams(
        temperature=0, max_tokens=len(case["tokens"]), ignore_eos=True, logprobs=TOP,
        detokenize=bool(case["text"]),
    )  # fmt: skip
    (made,) = model.generate([{"prompt_token_ids": case["prompt"]}], options, use_tqdm=False)
    del model
    gc.collect()
    tokens = list(made.outputs[0].token_ids)
    off = list(_off(case, tokens, made.outputs[0].logprobs))
    same = tokens == case["tokens"] or bool(case.get("length"))  # random models have near ties
    right = same and max(off) < TOLERANCE
    line = {
        "name": case["name"],
        "vllm": vllm.__version__,
        "right": right,
        **{key: case[key] for key in ("removed", "units", "heads") if case.get(key)},
        "same tokens": tokens == case["tokens"],
        "compared": len(off),
        "furthest log-probability": round(max(off), 5),
        "text": case["text"],
    }
    print(json.dumps(line), flush=True)
    return right


def _off(case: dict[str, Any], tokens: list[int], steps: Any) -> Iterator[float]:
    """How far the log-probabilities of the best tokens are off, as long as tokens are the same."""
    for token, own, there, expected in zip(
        tokens, case["tokens"], steps, case["steps"], strict=True
    ):
        for each, value in expected.items():
            if int(each) in there:
                yield abs(there[int(each)].logprob - value)
            elif int(each) == own:
                yield float("inf")
        if token != own:  # which was as likely, or it is wrong
            yield abs(expected.get(str(token), float("-inf")) - expected[str(own)])
            return


if __name__ == "__main__":
    sys.exit(main())
