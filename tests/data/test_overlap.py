"""Evaluation text in the training data is found, quotations are let be."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxprune.data.overlap import check, drop, overlap
from fxprune.data.records import Document, Instruction, Record, Records
from fxprune.data.text import Text
from fxprune.errors import RecoveryError


def prose(key: str, count: int) -> str:
    """Words that no other key has."""
    return " ".join(f"{key}{number}" for number in range(count))


def training(*records: str | Record) -> Records:
    return Records(
        "train.jsonl",
        tuple(
            Document(record, f"line {number}") if isinstance(record, str) else record
            for number, record in enumerate(records, start=1)
        ),
    )


def shares(records: Records, *texts: Text) -> list[tuple[str, str, float]]:
    return [(record.where, name, share) for record, name, share in overlap(records, texts)]


def test_the_same_article_in_another_tokenisation_is_found() -> None:
    raw = 'The well-known "Café" of 1,000 guests isn\'t open; it closed in May 1999, they say.'
    split = 'the well @-@ known " café " of 1 @,@ 000 guests isn \'t open ; it closed in may 1999 ,'
    wanted = Text("wiki", (prose("a", 50), split + " they say ."))
    # In the second, the accent is a character of its own.
    records = training(prose("b", 50), raw.replace("é", "e\u0301"))
    assert shares(records, wanted) == [("line 2", "wiki", 1.0)]


# n words have n - 12 shingles.
@pytest.mark.parametrize(
    ("shared", "own", "share"),
    [
        (13, 0, 1.0),
        (12, 50, None),
        (13, 9, 0.1),  # 1 of 10 shingles
        (13, 10, None),  # 1 of 11
        (22, 90, 0.1),  # 10 of 100
        (21, 90, None),  # 9 of 99
    ],
)
def test_a_tenth_of_the_training_record(shared: int, own: int, share: float | None) -> None:
    wanted = Text("wiki", (f"{prose('s', shared)} {prose('e', 400)}",))
    records = training(f"{prose('s', shared)} {prose('t', own)}")
    assert shares(records, wanted) == ([] if share is None else [("line 1", "wiki", share)])


@pytest.mark.parametrize(
    ("shared", "own", "share"), [(13, 9, 0.1), (13, 10, None), (22, 90, 0.1), (21, 90, None)]
)
def test_a_tenth_of_an_evaluation_record(shared: int, own: int, share: float | None) -> None:
    # Its own record matters, not the whole of the evaluation text.
    wanted = Text("wiki", (prose("o", 900), f"{prose('s', shared)} {prose('e', own)}"))
    records = training(f"{prose('t', 900)} {prose('s', shared)} {prose('u', 900)}")
    assert shares(records, wanted) == ([] if share is None else [("line 1", "wiki", share)])


def test_shares_of_different_evaluation_records_add_up_for_the_training_record_alone() -> None:
    # Each gives 1 of 20 shingles of the 32 words, two of one text make a tenth.
    parts = [prose("p", 13), prose("q", 13)]
    records = training(f"{parts[0]} {prose('t', 6)} {parts[1]}")
    one, two = (
        Text(name, (f"{part} {prose(name, 100)}",)) for name, part in zip("xy", parts, strict=True)
    )
    assert shares(records, one, two) == []
    assert shares(records, Text("both", one.records + two.records)) == [("line 1", "both", 0.1)]


def test_a_run_that_repeats_counts_once_for_the_evaluation_record() -> None:
    wanted = Text("wiki", (f"{prose('s', 13)} {prose('e', 20)}",))  # 21 shingles
    records = training(" x ".join([prose("s", 13), prose("t", 500)] * 5))
    assert shares(records, wanted) == []


def test_a_repetition_in_the_evaluation_record_counts_once() -> None:
    # 40 shingles, 13 of them different. Two times 13 words have 14, 13 of them different.
    wanted = Text("wiki", (" ".join([prose("s", 13)] * 4),))
    records = training(f"{prose('s', 13)} {prose('t', 500)}")
    assert shares(records, wanted) == []  # 1 of 13
    records = training(f"{prose('s', 13)} {prose('s', 13)} {prose('t', 500)}")
    assert shares(records, wanted) == [("line 1", "wiki", 1.0)]


def test_short_records_must_be_equal() -> None:
    wanted = Text("tasks", ("What is red?", prose("a", 30)))
    records = training("what is RED", "What is red? Or blue?", "is red", "...", prose("a", 12))
    assert shares(records, wanted) == [("line 1", "tasks", 1.0)]
    assert shares(training("..."), Text("none", ("...", ""))) == []


def test_an_instruction_is_all_of_its_parts() -> None:
    # Seven words in each part: none has a shingle of its own.
    records = training(Instruction(prose("a", 7), prose("b", 7), prose("c", 7), "here"))
    wanted = Text("tasks", (f"{prose('a', 7)}\n{prose('b', 7)}", prose("z", 40)))
    assert shares(records, wanted) == [("here", "tasks", 1.0)]


def test_the_text_with_the_largest_share_is_named() -> None:
    whole, half = prose("a", 40), " ".join(prose("a", 40).split()[:26])
    texts = (
        Text("half", (f"{half} {prose('h', 500)}",)),
        Text("whole", (f"{whole} {prose('w', 500)}",)),
        Text("again", (f"{whole} {prose('v', 500)}",)),
    )
    assert shares(training(whole), *texts) == [("line 1", "whole", 1.0)]


@given(st.data())
def test_as_counted_by_hand(data: st.DataObject) -> None:
    """Against sets of tuples of words, out of few runs so that much is shared."""
    runs = st.sampled_from([prose("a", 14), prose("b", 13), prose("c", 5), "x", "x x"])
    words = st.lists(runs, max_size=5).map(" ".join)
    given_texts = data.draw(st.lists(words, max_size=5))
    wanted = [data.draw(st.lists(words, max_size=3)) for _ in range(2)]
    texts = [Text(str(n), tuple(records)) for n, records in enumerate(wanted)]
    found = {where: share for where, _, share in shares(training(*given_texts), *texts)}

    def shingles(text: str) -> list[tuple[str, ...]]:
        parts = text.split()
        return [tuple(parts[i : i + 13]) for i in range(len(parts) - 12)]

    for number, text in enumerate(given_texts, start=1):
        mine = shingles(text)
        best = 0.0
        for records in wanted:
            here = {s for record in records for s in shingles(record)}
            if not mine:
                best = max(best, float(bool(text) and text in records))
                continue
            best = max(best, sum(s in here for s in mine) / len(mine))
            for theirs in map(set, map(shingles, records)):
                if theirs:
                    best = max(best, len(theirs & set(mine)) / len(theirs))
        assert found.get(f"line {number}", 0.0) == (best if best >= 0.1 else 0.0)


def test_check_and_drop() -> None:
    texts = [Text("wiki", (prose("a", 40),)), Text("books", (prose("b", 40), prose("c", 40)))]
    records = Records("t", training(*(prose(k, 40) for k in "xcayb")).records, ("line 0: bad",))
    with pytest.raises(RecoveryError) as caught:
        check(records, texts)
    assert str(caught.value) == (
        "t: 3 of its 5 training documents overlap with text to evaluate on: 2 with 'books' and 1 "
        "with 'wiki'. The first, line 2, shares 100% with 'books' and begins 'c0 c1 c2 c3 c4 c5 c6 "
        "c7'. Take them out of one of the two; --drop-overlap (drop_overlap=True) leaves them out "
        "of the training"
    )
    left = drop(records, texts)
    assert left.name == "t"
    assert [record.where for record in left.records] == ["line 1", "line 4"]
    assert left.skipped == (
        "line 0: bad",
        "line 2: overlaps with the evaluation text 'books' (100%)",
        "line 3: overlaps with the evaluation text 'wiki' (100%)",
        "line 5: overlaps with the evaluation text 'books' (100%)",
    )
    check(left, texts)
    assert drop(left, texts) == left
    check(records, [])


def test_nothing_left() -> None:
    with pytest.raises(RecoveryError, match=r"all 1 training documents overlap .*'wiki'"):
        drop(training(prose("a", 40)), [Text("wiki", (prose("a", 40),))])


def test_a_run_in_several_evaluation_records_counts_for_each_of_them() -> None:
    quoted = prose("s", 13)
    # 1 of 111 shingles of the first, 1 of 10 of the second; 1 of 508 of the training record.
    wanted = Text("wiki", (f"{quoted} {prose('e', 110)}", f"{quoted} {prose('f', 9)}"))
    assert shares(training(f"{quoted} {prose('t', 507)}"), wanted) == [("line 1", "wiki", 0.1)]
    # For the training record the run is one of 11, though two evaluation records have it.
    wanted = Text("wiki", (f"{quoted} {prose('e', 110)}", f"{quoted} {prose('f', 110)}"))
    assert shares(training(f"{quoted} {prose('t', 10)}"), wanted) == []


def test_memory_is_of_the_evaluation_alone() -> None:
    draw = random.Random(0)
    documents = [" ".join(f"{draw.random()}" for _ in range(100)) for _ in range(200)]
    records, wanted = training(*documents), [Text("wiki", (documents[0],))]
    tracemalloc.start()
    try:
        assert len(overlap(records, wanted)) == 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The shingles of all documents would take over 100 bytes each.
    assert peak < 500_000 < 200 * 2 * 88 * 100
