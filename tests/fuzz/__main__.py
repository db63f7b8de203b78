"""``python -m tests.fuzz --plans 10000 --seed 0``: the exit code is the number of failures."""

from __future__ import annotations

import argparse
import os
import sys
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--plans", type=int, default=1000, help="random plans to try")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", help="zoo, vision, generated, or one: image, llama, vision/fcn")
    parser.add_argument("--only", type=int, metavar="INDEX", help="replay the task of this index")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--show", type=int, default=5, help="failures to make small and print")
    given = parser.parse_args()

    import torch
    from rich.console import Console

    from tests.fuzz.run import run, summary, tasks

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    console = Console()
    try:
        work = tasks(given.seed, given.family, given.only)
    except ValueError as error:
        parser.error(str(error))
    total = run(work, given.plans, given.jobs, console, given.show)
    console.print(summary(total))
    return min(len(total.failures), 100)


if __name__ == "__main__":
    sys.exit(main())
