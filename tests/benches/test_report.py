"""The page of benchmarks from a small JSON that nobody measured."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benches import report
from benches.record import Record, shown


def made(*, gpu: str | None = None, seconds: float = 0.25, date: str = "2026-03-01") -> Any:
    first: dict[str, Any] = {}
    second: dict[str, Any] = {}
    record = Record(first, "Discovery", "cpu")
    record.row("By depth", {"layers": 4, "ours, s": seconds, "peer, s": "not finished in 9 s"})
    record.at_most("ours / export", 1.125, 1.2)
    other = Record(second, "Discovery", "cpu")
    other.row("By depth", {"layers": 8, "ours, s": 2 * seconds, "peer, s": None})
    other.note("Random weights.")
    with pytest.raises(AssertionError, match=r"as fast: 0\.900, at least 0\.950"):
        other.at_least("as fast", 0.9, 0.95)
    stats = {"median": 0.5, "rounds": 3}
    file = "benches/bench_thing.py"
    return {
        "machine_info": {
            "node": "secret-host",
            "system": "Linux",
            "machine": "x86_64",
            "python_version": "3.11.2",
            "cpu": {"brand_raw": "A CPU", "flags": ["avx2", "sse", "avx512_bf16"]},
            "cores": 2,
            "threads": 2,
            "gpu": gpu and {"name": gpu, "memory": 80 * 2**30},
            "versions": {"torch": "2.13.0"},
        },
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "datetime": f"{date}T10:00:00+00:00",
        "benchmarks": [
            {"fullname": f"{file}::test_a[4]", "name": "a", "stats": stats, "extra_info": first},
            {"fullname": f"{file}::test_a[8]", "name": "b", "stats": stats, "extra_info": second},
            {"fullname": f"{file}::test_b", "name": "test_b", "stats": stats, "extra_info": {}},
        ],
    }


EXPECTED = """## A CPU

* CPU: A CPU
* cores: 2
* threads: 2
* flags: avx2, avx512_bf16
* system: Linux x86_64
* Python: 3.11.2
* torch: 2.13.0

### Discovery

```sh
pytest benches/bench_thing.py --benchmark-json=RESULTS.json
```

2026-03-01, fxprune at 0123456789.

By depth:

| layers | ours, s | peer, s |
| ---: | ---: | --- |
| 4 | 0.250 | not finished in 9 s |
| 8 | 0.500 | - |

| bench | median, s | rounds |
| --- | ---: | ---: |
| test_b | 0.500 | 3 |

Limits:

| limit |  | measured | kept |
| --- | --- | ---: | --- |
| ours / export | at most 1.20 | 1.12 | yes |
| as fast | at least 0.950 | 0.900 | **no** |

* Random weights.
"""


def test_the_whole_page() -> None:
    assert report.page([made()]) == f"{report.HEAD}\n{EXPECTED}"


def test_figures_come_from_the_json() -> None:
    text = report.page([made(seconds=7.0)])
    assert "| 4 | 7.00 |" in text
    assert "| 8 | 14.0 |" in text
    assert "0.250" not in text


def test_a_machine_is_a_chapter_and_the_later_run_counts() -> None:
    later, early = made(seconds=3.0, date="2026-03-02"), made(seconds=9.0)
    gpu = made(gpu="A GPU")
    gpu["command"] = "python -m benches.gpu --out gpu.json"
    text = report.page([later, early, gpu])
    assert text.count("## A CPU\n") == text.count("## A GPU\n") == 1
    assert "* GPU: A GPU, 80 GiB" in text
    assert "\npython -m benches.gpu --out gpu.json\n" in text
    assert "| 4 | 3.00 |" in text
    assert "9.00" not in text
    assert "secret-host" not in text


def test_the_size_is_in_the_command() -> None:
    run = made()
    for bench in run["benchmarks"]:
        if bench["extra_info"]:
            bench["extra_info"]["size"] = "full"
    assert "\nBENCH_SIZE=full pytest benches/bench_thing.py" in report.page([run])


def test_figures_that_mean_nothing_are_refused() -> None:
    run = copy.deepcopy(made())
    run["benchmarks"][0]["extra_info"]["size"] = "quick"
    with pytest.raises(SystemExit, match="BENCH_SIZE=quick"):
        report.page([run])
    run["benchmarks"] = []
    with pytest.raises(SystemExit, match="without benchmarks"):
        report.page([run])


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, out = tmp_path / "results.json", tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["report", str(results), "--out", str(out)])
    with pytest.raises(SystemExit, match=r"results\.json is not a saved benchmark"):
        report.main()
    results.write_text(json.dumps(made()))
    report.main()
    assert out.read_text() == report.page([made()])


def test_a_quick_limit_is_noted_and_not_asserted() -> None:
    into: dict[str, Any] = {}
    Record(into, "A thing", "quick").at_most("slow", 2.0, 1.0)
    assert into["limits"] == [
        {"what": "slow", "measured": 2.0, "limit": 1.0, "how": "at most", "kept": False}
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("not finished", "not finished"),
        (7, "7"),
        (134_515_008, "134,515,008"),
        (0.01234, "0.0123"),
        (12.34, "12.3"),
        (123.4, "123"),
        (1234.5, "1,234"),
        (0.0, "0.00"),
    ],
)
def test_values_for_people(value: Any, text: str) -> None:
    assert shown(value) == text


def test_other_sections_stay_on_a_page() -> None:
    first, other, machine = made(), made(seconds=0.75, date="2026-03-02"), made(gpu="A GPU")
    for bench in other["benchmarks"]:
        bench["fullname"] = bench["fullname"].replace("thing", "another")
    whole = report.page([first, other, machine])
    assert report.page([other], report.page([first, machine])) == whole
    newer = made(seconds=0.5, date="2026-03-03")
    assert report.page([newer], whole) == report.page([first, newer, other, machine])
