"""Results as lines, tables and a plot."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fxprune.cli.compare import plot, results, table
from fxprune.cli.compare.labels import label
from fxprune.cli.compare.results import Result
from fxprune.config import PruneConfig
from fxprune.errors import CheckpointError

SECONDS = {"estimate": 2.0, "measure": 1.0}


def _result(seed: int, perplexity: float, parameters: int = 80, **options: object) -> Result:
    config = PruneConfig(seed=seed, **{"criterion": "taylor", **options})  # type: ignore[arg-type]
    columns = {"a.txt @ 8": perplexity, "a.txt @ 16": 2 * perplexity}
    key = f"{label(config)} {seed}"
    losses = {
        column: [math.log(value) + n / 8 for n in range(4)] for column, value in columns.items()
    }
    return Result(key, config, parameters, columns, SECONDS, losses)


DENSE = Result("dense", None, 100, {"a.txt @ 8": 5.0, "a.txt @ 16": 4.0}, {"measure": 1.0})
RESULTS = [
    DENSE,
    _result(0, 10.0),
    _result(1, 20.0, 82),
    _result(0, math.inf, criterion="random", kinds=("mlp",)),
    _result(0, 7.0, 90, pruning_ratio=0.1),
]


def test_lines_come_back(tmp_path: Path) -> None:
    assert results.load(tmp_path) == {}
    for result in RESULTS:
        results.add(tmp_path, result)
    assert results.load(tmp_path) == {result.key: result for result in RESULTS}
    for line in (tmp_path / "results.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_line_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    for result in RESULTS[:2]:
        results.add(tmp_path, result)
    file = tmp_path / "results.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    assert list(results.load(tmp_path)) == ["dense"]
    results.add(tmp_path, RESULTS[2])
    assert len(results.load(tmp_path)) == 2


@pytest.mark.parametrize("line", ["not JSON", "{}", "[1]", '{"key": 1, "config": {"x": 1}}'])
def test_a_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    results.add(tmp_path, DENSE)
    with (tmp_path / "results.jsonl").open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(CheckpointError, match=r"results\.jsonl line 2 is damaged"):
        results.load(tmp_path)


def test_folders(tmp_path: Path) -> None:
    results.check_folder(tmp_path)
    results.check_folder(tmp_path / "new")
    (tmp_path / "thesis.txt").touch()
    for folder in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(CheckpointError, match="is left alone"):
            results.check_folder(folder)
    results.add(tmp_path, DENSE)
    results.check_folder(tmp_path)


def test_rows_are_means_and_spreads_over_draws() -> None:
    dense, first, *others = table.rows(RESULTS)
    assert (dense.label, dense.draws) == ("dense", 1)
    assert first.draws == 2
    assert first.perplexity["a.txt @ 8"] == table.Spread(15.0, 10.0, 20.0)
    assert first.parameters == table.Spread(81.0, 80, 82)
    assert first.seconds == {"estimate": 2.0, "compensate": 0.0}
    assert [row.label for row in others] == ["random, global, mlp, 20 %", "taylor, global, 10 %"]


def test_markdown() -> None:
    lines = table.markdown(table.rows(RESULTS), ["made by hand"]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:6]]
    assert cells[0] == [
        "configuration", "parameters", "a.txt @ 8", "a.txt @ 16", "draws", "estimate, s",
        "compensate, s",
    ]  # fmt: skip
    assert cells[2] == ["dense", "100", "5", "4", "1", "", ""]
    assert cells[3] == [
        "taylor, global, 20 %", "81", "15 (10 to 20)", "30 (20 to 40)", "2", "2.0", "",
    ]  # fmt: skip
    assert cells[4][2] == "inf"
    assert lines[-1] == "* made by hand"


def test_ratios_are_of_the_same_windows() -> None:
    """Draws at 10 and 20 are 14.1 between them; all windows differ alike, so the error is 0."""
    more = [
        _result(0, 7.0, criterion="flap"),
        _result(0, 8.0, 90, criterion="flap", pruning_ratio=0.1),
    ]
    found = table.ratios(table.rows([*RESULTS, *more])).split("\n\n")
    first, second = ([line.split("|") for line in page.splitlines()] for page in found)
    assert first[0][1].strip() == "perplexity / that of taylor, global, 20 %"
    assert [cell.strip() for cell in first[2][1:-1]] == ["random, global, mlp, 20 %", "", ""]
    assert first[3][2].strip() == "0.495 ± 0.000"
    assert second[0][1].strip() == "perplexity / that of taylor, global, 10 %"
    assert [cell.strip() for cell in second[2][1:3]] == ["flap, global, 10 %", "1.143 ± 0.000"]
    assert not table.ratios(table.rows(RESULTS[:2]))
    assert not table.ratios(table.rows([RESULTS[1], RESULTS[4]]))


def test_csv() -> None:
    read = list(csv.DictReader(io.StringIO(table.as_csv(table.rows(RESULTS)))))
    assert [row["label"] for row in read] == [row.label for row in table.rows(RESULTS)]
    assert float(read[1]["a.txt @ 8 min"]) == 10.0
    assert float(read[1]["a.txt @ 16 max"]) == 40.0
    assert (read[2]["kinds"], read[2]["criterion"]) == ("mlp", "random")
    assert [row["pruning_ratio"] for row in read] == ["", "", "", "0.1"]
    assert read[0]["criterion"] == ""


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg"):
        assert plot.plot(table.rows(RESULTS), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "b.svg"]
    texts = [e.text for e in ElementTree.parse(tmp_path / "a.svg").iter() if e.text]
    for shown in ("a.txt @ 8", "a.txt @ 16", "dense", "taylor, global", "parameters, millions"):
        assert shown in texts


def test_no_plot_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not plot.plot(table.rows(RESULTS), tmp_path / "a.svg")
    assert not list(tmp_path.iterdir())
