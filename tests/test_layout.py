"""The house: which room may read which, what stands at the top, and how large things are."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

import fxprune

ROOT = Path(fxprune.__file__).parent

# From left to right: a room reads those before it.
ROOMS = (
    "errors", "files", "progress", "trace", "axes", "ops", "groups", "branches", "plan", "data",
    "importance", "costs", "select", "rewrite", "proof", "compensate", "depth", "stream", "hf",
    "serve", "measure", "criteria", "config", "result", "prune", "passes", "recover",
    "inspect", "cli",
)  # fmt: skip
# Methods that hand over to a function further right, for convenience.
DELEGATES = {
    ("fxprune.groups.dependency", "fxprune.inspect.explain"),
    ("fxprune.groups.dependency", "fxprune.inspect.explanation"),
    ("fxprune.groups.dependency", "fxprune.inspect.dot"),
    ("fxprune.plan", "fxprune.hf.shrink.chain"),
}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in ROOT.rglob("*.py")}


def _imports(module: str) -> Iterator[str]:
    """What a module imports of the package, late and for types too."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fxprune":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "fxprune")


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


EDGES = {(m, other) for m in MODULES for other in _imports(m)} - DELEGATES


def test_no_arrow_to_the_right() -> None:
    rank = {room: place for place, room in enumerate(ROOMS)}
    assert {_room(m) for m in MODULES} - {"", "__main__"} <= rank.keys()
    wrong = [
        f"{a} reads {b}"
        for a, b in sorted(EDGES)
        if _room(a) not in ("", "__main__", _room(b))
        and rank.get(_room(b), len(rank)) > rank[_room(a)]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_circle() -> None:
    circles = [c for c in nx.strongly_connected_components(nx.DiGraph(EDGES)) if len(c) > 1]
    assert not circles, circles


def test_delegates_are_few_and_real() -> None:
    every = {(m, other) for m in MODULES for other in _imports(m)}
    assert every >= DELEGATES


def test_rooms_and_modules_stay_few_and_small() -> None:
    top = {path.name for path in ROOT.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert len(top) <= 9, top
    assert len([path for path in ROOT.iterdir() if (path / "__init__.py").exists()]) <= 20
    lines = sorted(len(p.read_text(encoding="utf-8").splitlines()) for p in MODULES.values())
    assert lines[-1] <= LONGEST
    assert lines[len(lines) // 2] <= 120


LONGEST = 400


def test_the_root_names_what_it_loads() -> None:
    tree = ast.parse(MODULES["fxprune"].read_text(encoding="utf-8"))
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == fxprune._HOME
    assert set(fxprune.__all__) <= typed.keys()
    assert len(fxprune.__all__) <= 28
    assert all(getattr(fxprune, name) is not None for name in typed)


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import fxprune.cli.app", ("torch", "transformers", "peft", "numpy")),
        (
            "import fxprune; fxprune.trace, fxprune.discover, fxprune.rewrite, fxprune.verify",
            ("transformers", "peft", "matplotlib", "lm_eval"),
        ),
    ],
)
def test_what_is_not_imported(code: str, absent: tuple[str, ...]) -> None:
    check = f"{code}\nimport sys\nprint([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_packages_are_attributes_and_hide_no_verb_of_their_name() -> None:
    code = (
        "import fxprune\n"
        "assert fxprune.costs.macs and fxprune.hf\n"
        "import fxprune.trace.export, fxprune.recover.methods, fxprune.prune\n"
        "assert all(map(callable, (fxprune.trace, fxprune.recover, fxprune.prune)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_said() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        fxprune.prun  # noqa: B018
