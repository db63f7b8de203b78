"""Results as lines of JSON: where they come from, what they say, how they are counted."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]
ROOT = Path(__file__).parents[2]
STOCK_KINDS = ("mlp", "attention", "query", "uneven")
FURTHER_KINDS = ("expert", "state", "conv", "latent")
COUNTS = (
    "traced",
    "width right",
    "all kinds right",
    "all matrices covered",
    "a removable block right",
    "MLP stock",
    "heads stock",
    "depth stock",
    "everything works and stays stock",
    "experts stock",
    "states stock",
    "ranks stock",
    "wrong",
    "raw tracebacks",
    "timeouts",
    "not built",
)


def state() -> str:
    """Which fxprune this is: its version and the state of its folder in git."""
    import fxprune

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    tree = git("rev-parse", "--short=12", "HEAD:fxprune")
    changed = "+" if git("status", "--porcelain", "--", "fxprune") else ""
    return f"{fxprune.__version__} {tree}{changed}".strip()


def read(path: Path) -> dict[str, Result]:
    """The last result of each type in a file."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return {found["type"]: found for found in map(json.loads, filter(None, lines))}


def verdict(result: Result, name: str) -> str:
    """Of a stage; of those that come several times (``width 0``, ``width 1``) the worst one."""
    order = ("wrong", "raw", "timeout", "refused", "none", "ok")
    there = {
        stage["verdict"]
        for stage in result["stages"]
        if stage["name"] == name or stage["name"].rpartition(" ")[::2] in _numbered(name)
    }
    return next((each for each in order if each in there), "")


def _numbered(name: str) -> set[tuple[str, str]]:
    return {(name, str(place)) for place in range(10)}


def stage(result: Result, name: str) -> Mapping[str, Any]:
    """A stage by its name; empty if it was not reached."""
    return next((each for each in result["stages"] if each["name"] == name), {})


def letter(result: Result, what: str) -> str:
    """How a plan of that kind comes back from disk.

    ``s`` by the stock class, ``h`` by ``fxprune.load`` alone, ``~`` by the stock class but for
    rounding, ``x`` not at all, ``-`` where there is nothing of the sort, ``!`` wrong.
    """
    found = stage(result, f"{what} stock")
    if found.get("verdict") == "ok":
        return str(found["detail"])[:1]
    return {"none": "-", "wrong": "!", "raw": "!"}.get(
        found.get("verdict", ""), "x" if found else "-"
    )


def failures(result: Result, word: str) -> list[Mapping[str, Any]]:
    """The stages with that verdict."""
    return [each for each in result["stages"] if each["verdict"] == word]


def facts(result: Result) -> dict[str, bool]:
    """What is counted, of one type."""
    heads = letter(result, "attention")
    heads = letter(result, "query") if heads == "-" else heads
    wrong, raw = (bool(failures(result, word)) for word in ("wrong", "raw"))
    found = {
        "traced": verdict(result, "trace") == "ok",
        "width right": verdict(result, "width") == "ok",
        "all kinds right": verdict(result, "all") == "ok",
        "all matrices covered": result.get("cov", 0) >= 0.9995,
        "a removable block right": verdict(result, "depth") == "ok",
        "MLP stock": letter(result, "mlp") == "s",
        "heads stock": heads == "s",
        "depth stock": letter(result, "depth") == "s",
        "wrong": wrong,
        "raw tracebacks": raw,
        "timeouts": bool(failures(result, "timeout")),
        "not built": verdict(result, "build") != "ok",
    }
    queries = letter(result, "query") in "s-"
    needed = list(found)[:8]
    found["everything works and stays stock"] = (
        all(found[name] for name in needed) and queries and not wrong and not raw
    )
    for name, kind in (("experts", "expert"), ("states", "state"), ("ranks", "latent")):
        found[f"{name} stock"] = letter(result, kind) == "s"
    return {name: found[name] for name in COUNTS}


def counts(results: Iterable[Result]) -> dict[str, int]:
    """How many types each of :data:`COUNTS` holds of."""
    every = [facts(result) for result in results]
    return {name: sum(each[name] for each in every) for name in COUNTS}


def line(result: Result) -> str:
    """One type in the notation of the page, such as ``cov 1.00 w+ a+ d+ [sssh] s``."""
    if verdict(result, "build") != "ok":
        return "not built"
    if verdict(result, "trace") != "ok":
        return "not captured"
    signs = {"ok": "+", "none": "-", "": "-"}
    marks = [
        f"{name[0]}{signs.get(verdict(result, name), '!')}" for name in ("width", "all", "depth")
    ]
    letters = "".join(letter(result, kind) for kind in STOCK_KINDS)
    return f"cov {result.get('cov', 0):.2f} {' '.join(marks)} [{letters}] {letter(result, 'depth')}"
