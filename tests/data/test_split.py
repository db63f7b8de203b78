"""Training and validation parts: disjoint, complete, of whole records."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxprune.data.records import Document, Instruction, Record, Records
from fxprune.data.split import split
from fxprune.errors import RecoveryError


def numbered(count: int) -> Records:
    return Records("r", tuple(Document(f"text {i}", f"r line {i}") for i in range(count)))


@given(st.integers(2, 60), st.floats(0, 0.5), st.integers(0, 99))
def test_disjoint_and_complete(count: int, fraction: float, seed: int) -> None:
    records = numbered(count)
    training, validation = split(records, fraction, seed)
    both = training.records + validation.records
    assert len(both) == len(set(both)) == count
    assert set(both) == set(records.records)
    for part in (training, validation):
        places = [records.records.index(record) for record in part.records]
        assert places == sorted(places)
    if fraction:
        assert 1 <= len(validation.records) <= len(training.records)
        assert abs(len(validation.records) - fraction * count) <= 1


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [(100, 0.1, 10), (100, 0.29, 29), (10, 0.5, 5), (3, 0.5, 1), (2, 0.01, 1), (7, 0.5, 3)],
)
def test_sizes(count: int, fraction: float, expected: int) -> None:
    training, validation = split(numbered(count), fraction, 0)
    assert len(validation.records) == expected
    assert len(training.records) == count - expected
    assert (training.name, validation.name) == ("r, training part", "r, validation part")


def test_the_seed_decides() -> None:
    parts = [split(numbered(50), 0.2, seed) for seed in (1, 1, 2)]
    assert parts[0] == parts[1]
    assert parts[0] != parts[2]
    # Not merely the first or the last ones.
    places = [int(record.where.split()[-1]) for record in parts[0][1].records]
    assert places not in (list(range(10)), list(range(40, 50)))


@pytest.mark.parametrize("fraction", [0, 0.3])
def test_records_that_differ_in_white_space_count_once(fraction: float) -> None:
    records: tuple[Record, ...] = (
        Document("one  two\n", "line 1"),
        Instruction("one", "", "two", "line 2"),
        Document(" one\ttwo", "line 3"),
        Instruction("one two", "", "", "line 4"),
        Instruction("one ", "", " two", "line 5"),
        Instruction("one", "two", "", "line 6"),
        Document("one two", "line 7"),
        Document("onetwo", "line 8"),
        Instruction("a b", "c", "d", "line 9"),
        Instruction("a", "b c", "d", "line 10"),
    )
    training, validation = split(Records("r", records, ("line 0: bad",)), fraction, 0)
    kept = sorted(record.where for record in training.records + validation.records)
    assert kept == ["line 1", "line 10", "line 2", "line 4", "line 6", "line 8", "line 9"]
    assert training.skipped == (
        "line 0: bad",
        "line 3: the same as line 1",
        "line 5: the same as line 2",
        "line 7: the same as line 1",
    )
    assert validation.skipped == ()


def test_without_validation() -> None:
    training, validation = split(numbered(1), 0, 0)
    assert training == numbered(1)
    assert validation == Records("r, validation part", ())


@pytest.mark.parametrize("records", [1, 2])
def test_a_single_document_is_not_cut(records: int) -> None:
    one = Records("r", (Document("the same", "r"),) * records)
    with pytest.raises(RecoveryError, match=r"1 different document.* or a fraction of 0"):
        split(one, 0.1, 0)


@pytest.mark.parametrize("fraction", [-0.1, 0.51, float("nan"), float("inf")])
def test_fractions_out_of_range(fraction: float) -> None:
    with pytest.raises(RecoveryError, match=r"take 0 to 0\.5"):
        split(numbered(9), fraction, 0)
