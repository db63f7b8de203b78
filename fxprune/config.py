"""One configuration of pruning: what the Python call, the passes and the command line share.

Nothing heavy is imported here, so that the command line can make its options from the fields.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from fxprune.errors import ConfigError, CriterionError, SelectionError
from fxprune.files import check_fields, plain, read_values, write_values
from fxprune.groups.kinds import DEFAULT_KINDS, KINDS
from fxprune.select.budget import Budget, fraction, left
from fxprune.select.depth import FIXED, Depth
from fxprune.select.options import (
    at_most,
    check_in_pieces,
    check_least,
    check_multiple,
    check_number,
    check_search,
    check_without_units,
    in_bytes,
    layer_ranges,
)

if TYPE_CHECKING:
    from fxprune.depth import DepthCriterion
    from fxprune.importance.criterion import Criterion
    from fxprune.plan import Plan

RATIO = 0.2  # if no goal is given


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """How to prune, whatever the model and the data.

    :func:`fxprune.prune`, :class:`fxprune.passes.Prune`, ``fxprune prune`` and ``fxprune compare``
    all take this value, so their defaults are the same. It checks itself when it is made.

    Attributes:
        pruning_ratio: fraction of the whole model's parameters to remove, in [0, 1), or a
            percentage such as ``"20%"``; 0.2 if no other goal is given.
        budget: what may stay; beside a ratio, both are met.
        depth: whole blocks or branches to remove first; without a ratio or a budget that is all.
        criterion: how units are scored: a criterion, its name (one of
            :data:`fxprune.importance.named.NAMES`), or ``{"name": ..., option: value}``. None is
            ``obs`` for a causal language model and ``taylor`` for any other. For depth alone, how
            blocks are scored.
        depth_criterion: how blocks and branches are scored, likewise; None is ``ppl``.
        kinds: kinds of groups to prune; by default MLPs, and heads of attention or of a state.
        groups: instead of kinds, names of groups.
        vocabulary: tokens that stay, those that the calibration text uses most; alone, or before
            units go. ``kinds="vocabulary"`` meets a ratio or a budget of parameters so.
        ignore: names of modules, or :mod:`fnmatch` patterns, that are left as they are.
        only: likewise, outside of which everything is left as it is: ``model.language_model``.
        layers: numbers of the layers, of every stack, that lose units or go: ``"4-20,25"``;
            ``depth`` may have its own, as of ``only``.
        keep_first: leave this many layers at the start of every stack alone; depth has its own.
        keep_last: likewise at the end.
        ranking: ``global``, ``local`` or ``uniform``; None for what :func:`fxprune.select` takes.
        normalise: see :func:`fxprune.select`; None is what belongs to the scores.
        cost_aware: rank by score per cost; None is what belongs to the scores.
        overrides: kind of groups, or pattern of their names, to the fraction of units that goes
            there; 0 protects.
        multiple_of: a group that loses units keeps a multiple of this many; by kind if a mapping.
        min_kept: units (heads, neurons) that stay in every group at least; or by kind or pattern.
        max_ratio: share of its units that any group loses at most, likewise.
        target: engine that must run the result, by name; its limits bind while units are chosen.
        steps: reach the goal in so many steps, with new scores before each.
        search: ``predicted`` chooses by the scores, ``measured`` by costs measured in the network,
            ``local`` by trying plans around that of the scores (see :mod:`fxprune.stream.local`).
        branches: ``attention``, ``mlp``, ``block`` that may go as a whole, with measured costs.
        compensation: ``least-squares``, ``blockwise``, ``bias`` or None, see
            :func:`fxprune.compensate`; ``auto`` is the first or, where much goes, the second for a
            causal language model with data, also where only blocks go.
        compensation_scope: ``pruned``, what reads pruned units, or ``all``; None is the latter for
            least squares.
        calibration_samples: crops of text that the criterion sees; None for its own number: 10 as
            in LLM-Pruner, but 128 for covariances (``obs``).
        calibration_lengths: tokens in each; several lengths have an equal share of the tokens.
            None for 128, and for ``obs`` and compensation also 1024.
        compensation_samples: crops that compensation sees; those of the criterion come first. None
            for 128.
        written_samples: short sequences that a language model writes; None for three for each crop.
        effort: ``low`` halves the numbers of crops that are left open, and the model writes none;
            ``high`` lets it write twice as many.
        batch_size: sequences per forward pass of the calibration; None as the data comes.
        seed: of the crops and of random scores.
        verify: run the oracle.
        stream: run the model piece by piece, with only those weights in memory that run.
        max_memory: bytes that this takes at most, or text such as ``"6GiB"``; None for as little as
            the pieces need, and all that goes from one to the next.

    Raises:
        FxpruneError: an option is out of its range, or of no use beside the others. Names it.
    """

    pruning_ratio: float | str | None = None
    budget: Budget | None = None
    depth: Depth | None = None
    criterion: Criterion | str | Mapping[str, Any] | None = None
    depth_criterion: Criterion | DepthCriterion | str | Mapping[str, Any] | None = None
    kinds: tuple[str, ...] = DEFAULT_KINDS
    groups: tuple[str, ...] | None = None
    vocabulary: int | None = None
    ignore: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    layers: str | None = None
    keep_first: int = 0
    keep_last: int = 0
    ranking: Literal["local", "global", "uniform"] | None = None
    normalise: Literal["kind", "group", "standardise", "none"] | None = None
    cost_aware: bool | None = None
    overrides: Mapping[str, float] = field(default_factory=dict)
    multiple_of: int | Mapping[str, int] = 1
    min_kept: int | Mapping[str, int] = 1
    max_ratio: float | str | Mapping[str, float | str] | None = None
    target: str | None = None
    steps: int = 1
    search: Literal["predicted", "measured", "local"] = "predicted"
    branches: tuple[str, ...] = ()
    compensation: Literal["auto", "bias", "least-squares", "blockwise"] | None = "auto"
    compensation_scope: Literal["pruned", "all"] | None = None
    calibration_samples: int | None = None
    calibration_lengths: tuple[int, ...] | None = None
    compensation_samples: int | None = None
    written_samples: int | None = None
    effort: Literal["low", "default", "high"] = "default"
    batch_size: int | None = None
    seed: int = 0
    verify: bool = True
    stream: bool = False
    max_memory: int | str | None = None

    def __post_init__(self) -> None:
        self._normalise()
        self._check_values()
        if self.width:
            from fxprune.select.schedule import goals

            goals(self.steps, **(left(self.goal(), 1, 1) if self.tokens else self.goal()))
            check_search(self.search, self.branches, self.steps)
        else:
            check_without_units(self)
        self.make_criterion()
        found = self.make_depth_criterion()
        if self.stream or self.max_memory is not None:
            check_in_pieces(self, found)

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict(), sort_keys=True))

    @property
    def width(self) -> bool:
        """Whether units of groups go, not depth or tokens alone."""
        goal = self.pruning_ratio is not None or self.budget is not None
        alone = self.depth is None and self.vocabulary is None
        return not self.only_tokens and (goal or alone)

    @property
    def tokens(self) -> bool:
        """Whether tokens go, before anything else."""
        return self.vocabulary is not None or self.only_tokens

    @property
    def only_tokens(self) -> bool:
        """Whether the goal is met by tokens alone."""
        return self.kinds == ("vocabulary",) and self.groups is None

    def goal(self, tokens: Plan | None = None) -> dict[str, Any]:
        """``pruning_ratio`` or ``budget`` of :func:`fxprune.select`; nothing without units.

        Args:
            tokens: the plan by which tokens went before.

        Raises:
            SelectionError: the ratio and the budget exclude each other.
        """
        if not (self.width or self.only_tokens):
            return {}
        if tokens is not None:
            return left(self.goal(), tokens.parameters_before, tokens.parameters_after)
        if self.budget is None:
            ratio = RATIO if self.pruning_ratio is None else self.pruning_ratio
            return {"pruning_ratio": ratio}
        if not self.pruning_ratio:
            return {"budget": self.budget}
        if self.budget.params is not None:
            raise SelectionError("pruning_ratio= and a budget of params= are two limits: give one")
        return {"budget": replace(self.budget, params=1 - float(self.pruning_ratio))}

    def selection(self) -> dict[str, Any]:
        """The further options of :func:`fxprune.select`, but ``kinds``."""
        names = (
            "groups", "ignore", "only", "layers", "keep_first", "keep_last", "ranking", "normalise",
            "cost_aware", "overrides", "multiple_of", "min_kept", "max_ratio",
        )  # fmt: skip
        options = {name: getattr(self, name) for name in names} if self.width else {}
        return options | ({"gain_bias": True} if self.compensation == "bias" else {})

    def blocks(self) -> Depth | None:
        """The blocks or branches to remove, with what is to be ignored."""
        if self.depth is None:
            return None
        depth, layers = self.depth, self.depth.layers or self.layers
        return replace(
            depth,
            ignore=(*depth.ignore, *self.ignore),
            only=depth.only or self.only,
            layers=layers,
        )

    def make_criterion(self, causal: bool = True) -> Criterion | None:
        """The criterion of units; None for depth alone.

        Args:
            causal: whether the model is a causal language model, which decides the default.

        Raises:
            CriterionError: there is none of that name, or it scores blocks alone.
        """
        from fxprune.criteria import of_units

        given = ("obs" if causal else "taylor") if self.criterion is None else self.criterion
        return of_units(given, self.seed) if self.width else None

    def make_depth_criterion(self) -> Criterion | DepthCriterion | None:
        """What blocks are scored with; None where none are removed, or without scores.

        Raises:
            CriterionError: there is none of that name, or it has no use.
        """
        from fxprune.criteria import of_blocks

        given = self.depth_criterion
        if self.depth is None:
            if given is not None:
                raise CriterionError(
                    "depth_criterion= scores blocks and branches: say how many go, depth=Depth(...)"
                )
            return None
        if not self.width and self.criterion is not None:
            if given is not None:
                raise CriterionError(
                    "only blocks go, by one criterion: give criterion= or depth_criterion="
                )
            given = self.criterion
        if self.depth.schedule in FIXED:
            if given is not None:
                raise CriterionError(f"{self.depth.schedule} looks at no scores: leave out {given}")
            return None
        return of_blocks("ppl" if given is None else given, self.seed)

    def check_scores(self) -> None:
        """See that scores of an earlier run can take the place of a criterion.

        Raises:
            CriterionError: there is one too, or only depth goes.
            SelectionError: there are several steps.
        """
        if not self.width:
            raise CriterionError("scores= are of units of groups: depth alone takes a criterion")
        if self.criterion is not None:
            raise CriterionError("give either a criterion or scores=, which have theirs")
        if self.steps > 1:
            raise SelectionError(f"{self.steps} steps need new scores before each: no scores=")
        if self.search != "predicted":
            raise SelectionError("scores= are taken as they are: leave out search=")

    @classmethod
    def of(cls, config: PruneConfig | None = None, **options: Any) -> PruneConfig:
        """A configuration with some fields changed.

        Raises:
            ConfigError: there is no such field, or ``config`` is something else.
        """
        if config is not None and not isinstance(config, PruneConfig):
            raise ConfigError(f"config= takes a fxprune.PruneConfig, not {type(config).__name__}")
        check_fields(cls, options)
        return cls(**options) if config is None else replace(config, **options)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, as JSON and YAML have them; what is not set is left out."""
        from fxprune.depth import named as depth_named
        from fxprune.importance import named

        found = {each.name: getattr(self, each.name) for each in fields(self)}
        of_units = named if self.width else depth_named
        for name, table in (("criterion", of_units), ("depth_criterion", depth_named)):
            given = found[name]
            if given is not None and not isinstance(given, str | Mapping):
                found[name] = table.described(given)
        for name in ("budget", "depth"):
            if found[name] is not None:
                found[name] = plain(dataclasses.asdict(found[name]))
        found["compensation"] = "none" if self.compensation is None else self.compensation
        return plain(found)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> PruneConfig:
        """The opposite of :meth:`to_dict`; fields that are left out have their defaults.

        Raises:
            FxpruneError: there is no such field, or a value is refused.
        """
        values = dict(given)
        check_fields(cls, values)
        for name, kind in (("budget", Budget), ("depth", Depth)):
            if isinstance(values.get(name), Mapping):
                check_fields(kind, values[name])
                values[name] = kind(**values[name])
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write it as YAML or, to a path that ends in ``.json``, as JSON."""
        write_values(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> PruneConfig:
        """Read a configuration, or that of a run from its ``report.json``.

        Raises:
            ConfigError: it cannot be read, or does not hold a configuration.
            FxpruneError: a value is refused.
        """
        values = read_values(Path(path))
        if isinstance(values, dict) and isinstance(values.get("config"), dict):
            values = values["config"]
        if not isinstance(values, dict):
            raise ConfigError(f"{path} does not hold a configuration: fields and their values")
        return cls.from_dict(values)

    def _normalise(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        for name in ("kinds", "groups", "ignore", "only", "branches", "calibration_lengths"):
            value = getattr(self, name)
            if isinstance(value, str | int):
                put(name, (value,))
            elif value is not None:
                put(name, tuple(value))
        if self.pruning_ratio is not None:
            put("pruning_ratio", fraction("pruning_ratio", self.pruning_ratio))
        parts = {key: fraction(f"override of {key!r}", v) for key, v in self.overrides.items()}
        put("overrides", parts)
        put("max_ratio", at_most(self.max_ratio))
        put("layers", layer_ranges(self.layers))
        put("max_memory", in_bytes(self.max_memory))
        if str(self.compensation) == "none":
            put("compensation", None)

    def _check_values(self) -> None:
        from fxprune.compensate.compensate import Method, check_options
        from fxprune.select.density import NORMALISE
        from fxprune.select.select import RANKINGS
        from fxprune.serve.engine import check_name

        for name, kind in (("budget", Budget), ("depth", Depth)):
            if not isinstance(getattr(self, name), kind | None):
                raise SelectionError(f"{name}= takes a fxprune.{kind.__name__}")
        for name, choices in (
            ("ranking", RANKINGS),
            ("normalise", NORMALISE),
            ("search", ("predicted", "measured", "local")),
            ("effort", ("low", "default", "high")),
            ("compensation", (*get_args(Method), "none")),
        ):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise SelectionError(f"{name}={value!r}: choose from {', '.join(choices)}")
        method = "bias" if self.compensation == "bias" else "least-squares"
        check_options(method, scope=self.compensation_scope)
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or (not self.kinds and self.groups is None):
            what = f"unknown kind {unknown[0]!r}" if unknown else "no kinds"
            raise SelectionError(f"{what}: choose from {', '.join(KINDS)}")
        for name, least in {
            "keep_first": 0, "keep_last": 0, "calibration_samples": 1,
            "compensation_samples": 1, "written_samples": 0, "batch_size": 1, "vocabulary": 1,
        }.items():  # fmt: skip
            check_number(name, getattr(self, name), least)
        check_multiple(self.multiple_of)
        check_least(self.min_kept)
        if self.target is not None:
            check_name(self.target)
        if "vocabulary" in self.kinds and self.only_tokens == (self.vocabulary is not None):
            raise SelectionError("kind vocabulary alone meets the goal; else give vocabulary=")
        lengths = self.calibration_lengths
        if lengths is not None and min(lengths, default=0) < 2:
            shown = ",".join(map(str, lengths))
            raise SelectionError(f"calibration_lengths={shown}: at least 2 tokens")
