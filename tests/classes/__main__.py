"""Try the library on every causal language model of transformers: ``python -m tests.classes``."""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

from tests.classes import results
from tests.classes.worker import run

OUT = Path("classes.jsonl")


def main() -> None:
    """Run, or print what a file says."""
    options = _options()
    if options.summary:
        return summary(options.summary)
    if options.page:
        from tests.classes import table

        return table.write(options.out)
    from tests.classes.build import types

    classes = types()
    wanted = options.only.split(",") if options.only else list(classes)
    if unknown := [name for name in wanted if name not in classes]:
        raise SystemExit(f"no such type: {', '.join(unknown)}")
    about, known = _about(), results.read(options.out)
    if not options.again:
        wanted = [n for n in wanted if known.get(n, {}).get("state") != about["state"]]
    with options.out.open("a", encoding="utf-8") as file:
        for place, found in enumerate(run(wanted, options.jobs, options.limit), 1):
            found = {"type": found["type"], "class": classes[found["type"]], **about, **found}
            file.write(json.dumps(found) + "\n")
            file.flush()
            print(f"{place}/{len(wanted)} {found['type']} {found['seconds']} s", end=" ")
            print(results.line(found), flush=True)
            for each in found["stages"]:
                if each["verdict"] in ("wrong", "raw", "timeout"):
                    print(f"    {each['name']} {each['verdict']}: {each['detail']}", flush=True)
    return summary(options.out)


def _options() -> Any:
    parser = argparse.ArgumentParser(prog="python -m tests.classes", description=__doc__)
    parser.add_argument("--only", metavar="NAME[,NAME]", help="types of models; all if left out")
    parser.add_argument("--out", type=Path, default=OUT, help="lines of JSON, added to")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--limit", type=float, default=240, help="seconds for a type")
    parser.add_argument("--again", action="store_true", help="also what the file has results of")
    parser.add_argument("--page", action="store_true", help="write docs/classes.md from --out")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="print the counts of a file")
    return parser.parse_args()


def _about() -> dict[str, str]:
    import torch
    import transformers

    return {
        "state": results.state(),
        "torch": torch.__version__.partition("+")[0],
        "transformers": transformers.__version__,
        "date": datetime.date.today().isoformat(),
    }


def summary(path: Path) -> None:
    """Print the counts of a file."""
    found = results.read(path)
    print(f"{len(found)} types")
    for name, count in results.counts(found.values()).items():
        print(f"{count:5} {name}")


if __name__ == "__main__":
    main()
