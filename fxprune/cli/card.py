"""The card of a pruned model: what it was, what went, what it costs and how to run it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]

from fxprune.files import write_text
from fxprune.inspect.lost import Left, by_layer

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

    from fxprune.cli.workflow import Outcome
    from fxprune.groups.dependency import DependencyGraph
    from fxprune.result import PruneResult

CARD = "README.md"
TAGS = ("fxprune", "pruned")
# Fields of the original's card that hold for what is left of it.
_COPIED = ("license", "license_name", "license_link", "language", "pipeline_tag")
# What these run is not the folder itself, and whether they can takes an export to find out.
_EXPORTS = ("onnx", "torch")


def write_card(
    outcome: Outcome,
    *,
    base: str,
    config: Mapping[str, Any],
    name: str | None = None,
    folder: Path | None = None,
    retrained: str = "",
) -> Path:
    """Write ``README.md`` into the folder of a pruned model.

    Args:
        outcome: the model and what it costs.
        base: the original, as it was typed.
        config: how it was pruned, see :meth:`fxprune.PruneConfig.to_dict`.
        name: ``user/name`` on the hub, if it goes there.
        folder: of a retrained model, where it is; that of the pruned one if left out.
        retrained: in words how, if it was.

    Returns:
        The file.
    """
    from huggingface_hub import ModelCard

    from fxprune.measure.report import rows

    folder = folder or outcome.folder
    data = _data(base)
    shown = data.base_model if isinstance(data.base_model, str) else Path(base).name
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name.split('/')[1] if name else folder.name}",
        _opening(outcome, shown, retrained),
        "## Costs",
        _table(("", "before", "after", "change"), rows(outcome.before, outcome.after)),
        "\n".join(f"* {line}" for line in _measured(outcome)),
        "## What went",
        *_gone(outcome.result, outcome.notes),
        "## Loading",
        *_loading(outcome.result, name or "FOLDER"),
        "## How it was made",
        "By `fxprune prune MODEL --out FOLDER --recipe recipe.yaml` with this recipe:",
        f"```yaml\n{yaml.safe_dump(dict(config), sort_keys=False).strip()}\n```",
    ]
    file = folder / CARD
    write_text(file, str(ModelCard("\n\n".join(parts) + "\n")))
    return file


def _data(base: str) -> ModelCardData:
    """The fields at the top, some of them from the original's card."""
    from huggingface_hub import ModelCard, ModelCardData

    from fxprune.hf.open.models import Source, fetch, resolve
    from fxprune.hf.open.smollm2 import ORIGIN

    folder = Path(base).expanduser()  # which may hold what fxprune pruned, in any form
    source = Source("folder", str(folder)) if folder.is_dir() else resolve(base)
    known: dict[str, Any] = {}
    if source.kind == "smollm2":
        known = dict(ORIGIN)
    elif (card := (folder if source.kind == "folder" else fetch(base)) / CARD).is_file():
        known = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    copied = {field: known[field] for field in _COPIED if known.get(field)}
    if source.kind == "hub":
        copied["base_model"] = source.location
    elif source.kind == "smollm2" or set(TAGS) <= set(known.get("tags") or ()):
        copied["base_model"] = known.get("base_model")
    return ModelCardData(library_name="transformers", tags=list(TAGS), **copied)


def _opening(outcome: Outcome, base: str, retrained: str) -> str:
    before, after = outcome.before.parameters, outcome.after.parameters
    plan = outcome.result.plan
    how = f"Structured pruning took {100 * (1 - after / before):.1f} % of the parameters of {base}"
    scored = f", by `{plan.criterion}`" if plan.criterion else ""
    mended = outcome.result.compensation
    refit = f" What stays was mended ({mended.method})." if mended is not None else ""
    trained = f" {retrained}" if retrained else " Nothing was retrained."
    return f"{how}{scored}: what is left is a smaller dense model.{refit}{trained}"


def _measured(outcome: Outcome) -> Iterator[str]:
    yield from outcome.caption.splitlines()
    if outcome.result.report is not None:
        yield f"proven against the original before values changed: {outcome.result.report}"


def _gone(result: PruneResult, notes: Iterable[str]) -> Iterator[str]:
    """What stays in each layer, those that are alike in one row, and what went whole."""
    if notes:
        yield "\n".join(f"* {line}" for line in notes)
    if result.plan.removed:
        yield f"Removed whole: {', '.join(f'`{name}`' for name in result.plan.removed)}."
    cut = {result.graph[name].kind for name in result.plan.kept}
    stays = {name: len(units) for name, units in result.plan.kept.items()}
    groups = [g for g in result.graph.groups if g.kind in cut]
    left = (Left(g.name, g.kind, g.layer, stays.get(g.name, g.size), g.size) for g in groups)
    head, rows, others = by_layer(left)
    for table, first in ((rows, head), (others, ("group", "units"))):
        if table:
            yield _table(first, [(_code(name), *cells) for name, *cells in table])


def _code(name: str) -> str:
    """A name as code, and the numbers of layers behind it."""
    place, space, span = name.partition(" ")
    return f"`{place}`{space}{span}"


def _loading(result: PruneResult, where: str) -> Iterator[str]:
    """What loads the folder as it is, and how it is written for the engines that can run it."""
    from fxprune.serve.engine import engine, engines

    graph, plan = _with_shapes(result), result.plan
    able = [n for n in engines() if n not in _EXPORTS and not engine(n).check(plan, graph)]
    remote = "" if "transformers" in able else ", trust_remote_code=True"
    if {"transformers", "transformers-remote"} & set(able):
        yield (
            "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f"model = AutoModelForCausalLM.from_pretrained({where!r}{remote})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({where!r})\n```"
        )
    yield (
        "With fxprune installed, `fxprune.load(FOLDER)` opens a local copy, and runs no code of it."
    )
    written = [name for name in able if not name.startswith("transformers")]
    if written:
        lines = "\n".join(f"fxprune convert FOLDER TARGET --for {name}" for name in written)
        yield f"For engines that serve models:\n\n```sh\n{lines}\n```"


def _with_shapes(result: PruneResult) -> DependencyGraph:
    """The groups of the original, also if its weights are free by now."""
    from fxprune.branches import bypass
    from fxprune.groups.dependency import discover
    from fxprune.rewrite.history import history_of

    known = history_of(result.graph_module)
    if known is None or all(each.numel() for each in result.traced.tensors.values()):
        return result.graph
    return discover(bypass(known.original(), result.plan.removed))


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)
