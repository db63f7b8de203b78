"""Where boxes stand: in the direction of the flow, beside one another, edges between them."""

from __future__ import annotations

import itertools

import pytest

from fxprune.inspect.page.layout import Layout, layout

BOX = (100.0, 40.0)


def placed(edges: list[tuple[str, str]], across: bool = True) -> Layout:
    boxes = dict.fromkeys(end for edge in edges for end in edge)
    return layout(dict.fromkeys(boxes, BOX), edges, across=across, gap=50)


@pytest.mark.parametrize("across", [True, False])
def test_a_chain_leads_on(across: bool) -> None:
    found = placed([("a", "b"), ("b", "c")], across)
    axis = 0 if across else 1
    step = BOX[axis] + 50
    assert [found.centres[n][axis] for n in "abc"] == [BOX[axis] / 2 + step * i for i in range(3)]
    assert len({found.centres[n][1 - axis] for n in "abc"}) == 1
    start, end = found.routes["a", "b"]
    assert (start[axis], end[axis]) == (BOX[axis], BOX[axis] + 50)
    size = found.width, found.height
    assert size[axis] == 3 * BOX[axis] + 100
    assert size[1 - axis] == BOX[1 - axis]


def test_boxes_do_not_overlap_and_long_edges_pass_beside_them() -> None:
    edges = [("a", n) for n in "bcde"] + [(n, "f") for n in "bcde"] + [("a", "f"), ("f", "g")]
    found = placed(edges)
    for one, other in itertools.combinations(found.centres.values(), 2):
        assert abs(one[0] - other[0]) >= BOX[0] or abs(one[1] - other[1]) >= BOX[1]
    inner = found.routes["a", "f"][1:-1]
    assert len(inner) == 2  # enters and leaves the layer between
    for (x, y), n in itertools.product(inner, "bcde"):
        assert abs(x - found.centres[n][0]) <= BOX[0] / 2
        assert abs(y - found.centres[n][1]) > BOX[1] / 2


def test_a_cycle_starts_at_its_first_box() -> None:
    found = placed([("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")])
    assert sorted("abcd", key=lambda n: found.centres[n][0]) == list("abcd")
    back = found.routes["c", "b"]
    assert back[0][0] > back[-1][0]  # from the tail to the head, against the flow


def test_neighbours_are_put_in_order() -> None:
    # Crossed as given; straight once a layer is ordered by the other.
    found = placed([("s", "a"), ("s", "b"), ("a", "y"), ("b", "x"), ("x", "t"), ("y", "t")])
    upper = found.centres["a"][1] < found.centres["b"][1]
    assert (found.centres["y"][1] < found.centres["x"][1]) == upper


def test_edges_share_the_side_of_a_box() -> None:
    found = placed([("a", "b"), ("a", "c"), ("a", "a")])
    starts = [found.routes[pair][0] for pair in (("a", "b"), ("a", "c"), ("a", "a"))]
    assert len({y for _, y in starts}) == 3
    assert {x for x, _ in starts} == {BOX[0]}
    assert all(0 < y - (found.centres["a"][1] - BOX[1] / 2) < BOX[1] for _, y in starts)


def test_no_boxes() -> None:
    assert layout({}, [], across=True, gap=9) == Layout({}, {}, 0.0, 0.0)
