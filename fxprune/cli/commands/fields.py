"""Options made from the fields of a configuration, and a configuration from options."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from fxprune.cli.commands.options import (
    by_key,
    layer_ratio_of,
    numbers,
    numbers_by_key,
    shape_of,
)
from fxprune.config import PruneConfig
from fxprune.errors import FxpruneError
from fxprune.select.budget import Budget
from fxprune.select.depth import Depth

PARTS: dict[str, type] = {"budget": Budget, "depth": Depth}


class Option(NamedTuple):
    """What the command line says of a field.

    Attributes:
        help: in a sentence.
        shown: its default, if the field's own is not what a user would call it.
        name: of the option, if that is another than the field's.
        repeated: whether each value is an option of its own.
    """

    help: str
    shown: str | None = None
    name: str | None = None
    repeated: bool = False


# In the order in which --help shows them. Fields that are not here are for Python alone.
OPTIONS = {
    "pruning_ratio": Option(
        "Fraction of all parameters to remove, such as 0.2 or 20%.",
        "0.2 unless another goal is given",
        "--ratio",
    ),
    "budget.macs": Option("MACs that may stay: a fraction, or a number above 1."),
    "budget.kv_cache": Option("Numbers cached per token that may stay, likewise."),
    "budget.latency": Option(
        "Time of a forward pass that may stay: a fraction, or milliseconds above 1. How sizes of"
        " groups change it is measured on this device first, once."
    ),
    "budget.shape": Option("BATCHxTOKENS of the pass that --macs and --latency are about.", "1x64"),
    "budget.units": Option("Instead: fraction of units to remove from every group."),
    "criterion": Option(
        "How units are scored: obs, taylor, taylor2, flap, wanda-sp, magnitude, random, ...",
        "obs; taylor if it is not a causal language model",
    ),
    "kinds": Option("Kinds of groups, with commas."),
    "vocabulary": Option(
        "Tokens that stay, those that --text uses most; alone, or before anything else. Or by"
        " --ratio: --kinds vocabulary.",
        "all",
    ),
    "ignore": Option("Module to leave as it is, or a pattern of names; repeatable.", repeated=True),
    "only": Option(
        "Module, or a pattern, outside of which all is left as it is; repeatable.", repeated=True
    ),
    "layers": Option("Numbers of the layers that may lose units or go, such as 4-20,25.", "all"),
    "overrides": Option(
        "PATTERN=FRACTION of units that go there, repeatable; 0 protects.", name="--layer-ratio"
    ),
    "max_ratio": Option(
        "Share of its units that any group loses at most: a fraction, or KIND=FRACTION and"
        " PATTERN=FRACTION with commas.",
        "no limit",
    ),
    "keep_first": Option("Leave the first layers alone.", "0; 4 for blocks"),
    "keep_last": Option("Leave the last layers alone.", "0; 2 for blocks"),
    "ranking": Option(
        "global: all units together; local: an equal share of each group; uniform: equal numbers in"
        " all layers, shared among kinds by the scores.",
        "global",
    ),
    "normalise": Option(
        "What makes scores of groups comparable: kind, group, standardise or none.",
        "the criterion's own",
    ),
    "cost_aware": Option("Rank by score per cost of a unit.", "the criterion's own"),
    "multiple_of": Option(
        "Groups that lose units keep a multiple of this many; by kind: mlp=32,attention=2."
    ),
    "min_kept": Option(
        "Units that stay in every group at least; by kind or pattern: attention=2,mlp=64."
    ),
    "target": Option(
        "Engine that must run the result: transformers (a stock checkpoint), transformers-remote,"
        " llama.cpp, nemotron-nas, mlx, vllm, onnx, torch.",
        name="--for",
    ),
    "steps": Option("Steps to the goal, with new scores before each."),
    "search": Option(
        "predicted: choose by the scores; measured: bring them first to costs measured in the"
        " network, option by option; local: try whole plans around that of the scores."
    ),
    "branches": Option(
        "With measured costs: attention, mlp, block (with commas), which may go as a whole where"
        " that costs less than units."
    ),
    "compensation": Option(
        "none, bias or least-squares: mend what stays, by forward passes; blockwise: then train"
        " block by block towards the original. auto, for a causal language model: least-squares,"
        " and blockwise where 20 % or more goes.",
        name="--compensate",
    ),
    "compensation_scope": Option(
        "pruned, or all: least squares for products that read no pruned unit too.", "all"
    ),
    "depth.remove": Option(
        "Blocks (or what --unit says) to remove whole, before anything else.",
        name="--remove-blocks",
    ),
    "depth.ratio": Option(
        "Instead: fraction of all parameters to remove so.", name="--remove-ratio"
    ),
    "depth.unit": Option("block, attention, mlp, or branch for either of the two."),
    "depth.schedule": Option("one-shot, greedy, run (neighbours), alternate, first (those stay)."),
    "depth_criterion": Option(
        "How blocks are scored: ppl, block-influence, angular-distance, magnitude, taylor, ...",
        "ppl",
    ),
    "calibration_samples": Option("Crops of text that the criterion sees.", "10; 128 for obs"),
    "calibration_lengths": Option(
        "Tokens in each; several with commas share the tokens.",
        "128; for obs and compensation 128,1024",
        "--calibration-length",
    ),
    "compensation_samples": Option("Crops that compensation sees.", "128"),
    "written_samples": Option(
        "Short sequences that the model itself writes for both, beginning as crops of the text do.",
        "three for each crop, for obs and compensation",
    ),
    "effort": Option(
        "How much text is seen where no numbers are given. low: half of it, and none that the model"
        " writes; high: it writes twice as much."
    ),
    "seed": Option("Seed of the calibration crops and of random scores."),
    "verify": Option("Prove the result against the original."),
    "stream": Option(
        "Run the model piece by piece, with only those weights in memory that run; by itself where"
        " they exceed free memory."
    ),
    "max_memory": Option("With --stream: memory to take at most, such as 6GiB.", "what it needs"),
}


def takes_config(
    command: Callable[..., None], names: Iterable[str] = OPTIONS
) -> Callable[..., None]:
    """Give a command an option for every field in :data:`OPTIONS`, or for those of some names.

    The command has a parameter ``given``, which gets what was typed by name of field; a part of
    the configuration has names such as ``budget.macs``.
    """
    own = inspect.signature(command, eval_str=True)
    word = inspect.Parameter.KEYWORD_ONLY
    parameters = [p.replace(kind=word) for p in own.parameters.values() if p.name != "given"]
    places = {name.replace(".", "_"): name for name in names}
    parameters += [
        inspect.Parameter(place, word, default=None, annotation=_annotation(name))
        for place, name in places.items()
    ]

    @functools.wraps(command)
    def called(**values: Any) -> None:
        typed = {name: values.pop(place) for place, name in places.items()}
        command(**values, given={n: v for n, v in typed.items() if v is not None and v != []})

    called.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    return called


def configuration(given: Mapping[str, Any], recipe: Path | None = None) -> PruneConfig:
    """What was typed as a configuration.

    Args:
        given: what was typed, by name of option.
        recipe: a file with a configuration, whose fields those that were typed take the place of.

    Raises:
        FxpruneError: the file cannot be read, or a value is refused.
    """
    values = {} if recipe is None else PruneConfig.load(recipe).to_dict()
    with named_as_typed():
        return PruneConfig.from_dict(put(values, given))


@contextlib.contextmanager
def named_as_typed() -> Iterator[None]:
    """Errors about fields, in the words of the command line.

    Raises:
        FxpruneError: there was one.
    """
    try:
        yield
    except FxpruneError as error:
        raise type(error)(as_options(str(error))) from error


def put(values: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration, those that were typed in their places."""
    for name, typed in given.items():
        part, _, field = name.rpartition(".")
        place = values.setdefault(part, {}) if part else values
        place[field] = _read(name, typed)
    if "depth" in values:
        for name in {"keep_first", "keep_last"} & given.keys():
            values["depth"][name] = given[name]
            if "pruning_ratio" not in values and "budget" not in values:
                del values[name]
    return values


def as_options(message: str) -> str:
    """A message about fields, in the words of the command line."""
    for name in OPTIONS:
        option = _option_name(name)
        field = rf"(?<![\w-]){name.rpartition('.')[2]}="
        message = re.sub(rf"{field}(?=[\w'\"(\[.-])", f"{option} ", message)
        message = re.sub(field, option, message)
    return message


def _field(name: str) -> Field[Any]:
    part, _, inner = name.rpartition(".")
    kind = PARTS[part] if part else PruneConfig
    return next(each for each in dataclasses.fields(kind) if each.name == inner)


def _option_name(name: str) -> str:
    inner = name.rpartition(".")[2].replace("_", "-")
    return OPTIONS[name].name or f"--{inner}"


def _annotation(name: str) -> Any:
    """The type that typer reads, and the option."""
    each, option, typed = _field(name), OPTIONS[name], _option_name(name)
    kind: Any = list[str] if option.repeated else str
    for start, found in (("bool", bool), ("int", int), ("Mapping", list[str])):
        if str(each.type).startswith(start) and not str(each.type).endswith("| Mapping[str, int]"):
            kind = found
    names = f"{typed}/--no-{typed[2:]}" if kind is bool else typed
    shown, default = option.shown, each.default
    if shown is None and default not in (None, (), MISSING):
        shown = ",".join(default) if isinstance(default, tuple) else str(default)
        shown = typed[2:] if default is True else shown
    return Annotated[
        kind | None, typer.Option(names, help=option.help, show_default=shown or False)
    ]


def _read(name: str, typed: Any) -> Any:
    """What was typed as the value of a field."""
    kind = str(_field(name).type)
    if name == "budget.shape":
        return shape_of(typed)
    if "int | Mapping" in kind:
        return numbers_by_key(_option_name(name), typed)
    if "str | Mapping" in kind:
        return by_key(_option_name(name), typed)
    if kind.startswith("Mapping"):
        return dict(map(layer_ratio_of, typed))
    if kind.startswith("tuple[int"):
        return numbers(_option_name(name), typed)
    if kind.startswith("tuple[str") and isinstance(typed, str):
        return tuple(part.strip() for part in typed.split(",") if part.strip())
    return tuple(typed) if isinstance(typed, list) else typed
