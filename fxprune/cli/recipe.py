"""The options of ``fxprune prune`` as a value that checks itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from fxprune.errors import CriterionError, DepthError, SelectionError

if TYPE_CHECKING:
    from fxprune.depth import DepthCriterion
    from fxprune.importance import Criterion
    from fxprune.select import Budget, Depth

RANKINGS = ("local", "global")
SAVE_AS = ("auto", "transformers", "graph")
COMPENSATIONS = ("auto", "none", "bias", "least-squares")
SCOPES = ("pruned", "all")
# Options that mean nothing where only blocks go.
_OF_UNITS = ("scores", "kinds", "ranking", "multiple_of", "layer_ratios", "steps")


@dataclass(frozen=True)
class Recipe:
    """What to prune and how to measure it; the options of ``fxprune prune``.

    Attributes:
        ratio: fraction of the model's parameters to remove, in [0, 1).
        macs: what may stay of the MACs: a fraction, or a number above 1.
        kv_cache: what may stay of the key/value cache, likewise.
        latency: what may stay of the time of a forward pass on this machine: a fraction, or
            milliseconds above 1.
        units: instead of all these, the fraction of units to remove from every group.
        criterion: a name of :data:`fxprune.importance.named.NAMES`; None with saved scores.
        scores: instead of a criterion, the file of scores that an earlier run saved.
        kinds: kinds of groups to prune.
        ranking: ``local`` or ``global``.
        multiple_of: the number of units that stay in a group that loses some is a multiple of it.
        layer_ratios: pattern of group names to the fraction of units that goes there.
        steps: reach the goal in so many steps.
        compensate: ``none``, ``bias``, ``least-squares``; ``auto`` is the latter for a language
            model and else none.
        compensation_scope: ``pruned``, what reads pruned units, or ``all``; None is the latter for
            least squares.
        seed: of calibration crops and random scores.
        remove: how many blocks or branches to remove first; without another goal that is all.
        remove_ratio: instead, the fraction of all parameters that goes so at least.
        unit: what of the depth: ``block``, ``attention``, ``mlp`` or ``branch``.
        schedule: see :class:`fxprune.Depth`; None for ``one-shot``.
        depth_criterion: a name of :data:`fxprune.depth.named.NAMES`; None for ``ppl``, or for
            ``criterion`` where only depth goes.
        keep_first: leave this many layers at the start alone; None for 4 in depth, else 0.
        keep_last: leave this many layers at the end alone; None for 2 in depth, else 0.
        calibration_samples: crops of text that the criterion sees; None for its own number, see
            :attr:`samples`.
        compensation_samples: crops that compensation sees; those of the criterion come first.
        calibration_lengths: tokens in each; several lengths have an equal share of the tokens.
            None for 128, and for ``obs`` and compensation also 1024.
        evaluation_samples: windows that perplexity is measured on, spread over the text.
        evaluation_length: tokens in each.
        verify: run the oracle.
        save_as: ``transformers`` or ``graph``; ``auto`` is the former where a config can say the
            sizes.
        shape: sequences of a forward pass and tokens of each, for ``macs`` and ``latency``.
    """

    ratio: float | None = 0.2
    macs: float | None = None
    kv_cache: float | None = None
    latency: float | None = None
    units: float | None = None
    criterion: str | None = "obs"
    scores: str | None = None
    kinds: tuple[str, ...] = ("mlp", "attention")
    ranking: str = "global"
    multiple_of: int = 1
    layer_ratios: Mapping[str, float] = field(default_factory=dict)
    steps: int = 1
    compensate: str = "auto"
    compensation_scope: str | None = None
    seed: int = 0
    remove: int | None = None
    remove_ratio: float | None = None
    unit: str = "block"
    schedule: str | None = None
    depth_criterion: str | None = None
    keep_first: int | None = None
    keep_last: int | None = None
    calibration_samples: int | None = None
    compensation_samples: int = 128
    calibration_lengths: tuple[int, ...] | None = None
    evaluation_samples: int = 64
    evaluation_length: int = 128
    verify: bool = True
    save_as: str = "auto"
    shape: tuple[int, int] = (1, 64)

    def check(self) -> None:
        """Refuse what cannot work, before anything is loaded.

        Raises:
            SelectionError: an option is out of its range, or of no use beside the others.
            DepthError: likewise, of the depth.
            CriterionError: there is no such criterion.
        """
        from fxprune.groups.kinds import KINDS
        from fxprune.select import goals
        from fxprune.select.budget import check_ratio

        if self.width or self.depth() is None:
            goals(self.steps, **self.goal())
        else:
            self._check_only_depth()
        self.make_criterion()
        self.make_depth_criterion()
        if self.scores is not None and self.steps > 1:
            raise SelectionError(f"{self.steps} steps need new scores before each: no saved ones")
        for pattern, share in self.layer_ratios.items():
            check_ratio(f"layer-ratio {pattern}", share)
        scope = self.compensation_scope
        for name, value, choices in (
            ("ranking", self.ranking, RANKINGS),
            ("compensate", self.compensate, COMPENSATIONS),
            ("compensation_scope", "all" if scope is None else scope, SCOPES),
            ("save_as", self.save_as, SAVE_AS),
        ):
            if value not in choices:
                shown = name.replace("_", "-")
                raise SelectionError(f"no {shown} {value!r}: take {', '.join(choices)}")
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            what = f"no kind {unknown[0]!r}" if unknown else "no kinds"
            raise SelectionError(f"{what}: take some of {', '.join(KINDS)}")
        for name, least in (
            ("multiple_of", 1),
            ("keep_first", 0),
            ("keep_last", 0),
            ("calibration_samples", 1),
            ("compensation_samples", 1),
            ("evaluation_samples", 1),
            ("evaluation_length", 2),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                shown = name.replace("_", "-")
                raise SelectionError(f"{shown} is {value}: at least {least}")
        if min(self.lengths(self.criterion == "obs"), default=0) < 2:
            shown = ",".join(map(str, self.calibration_lengths or ()))
            raise SelectionError(f"calibration-length is {shown}: at least 2")

    def goal(self) -> dict[str, Any]:
        """What is asked for: ``pruning_ratio`` or ``budget`` of :func:`fxprune.prune`.

        Raises:
            SelectionError: nothing is, or a number is out of its range.
        """
        from fxprune.select import Budget
        from fxprune.select.budget import check_ratio

        if not self.width and self.depth() is not None:
            return {}
        if self.ratio is not None:
            check_ratio("ratio", self.ratio)
        others = (self.macs, self.kv_cache, self.latency, self.units)
        if all(other is None for other in others):
            return {"pruning_ratio": self.ratio}
        params = None if not self.ratio else 1 - self.ratio
        budget: Budget = Budget(
            params=params,
            macs=self.macs,
            kv_cache=self.kv_cache,
            latency=self.latency,
            units=self.units,
            shape=self.shape,
        )
        return {"budget": budget}

    def selection(self) -> dict[str, Any]:
        """Further options of :func:`fxprune.select`."""
        local = self.units is not None
        return {
            "kinds": self.kinds,
            "ranking": "local" if local else self.ranking,
            "keep_first": self.keep_first or 0,
            "keep_last": self.keep_last or 0,
            "multiple_of": self.multiple_of,
            "overrides": dict(self.layer_ratios),
        }

    @property
    def width(self) -> bool:
        """Whether units of groups go, not depth alone."""
        goals = (self.ratio, self.macs, self.kv_cache, self.latency, self.units)
        return any(goal is not None for goal in goals)

    def depth(self) -> Depth | None:
        """The blocks or branches to remove, as :func:`fxprune.prune` takes them; None for none.

        Raises:
            DepthError: an option is out of its range.
        """
        from fxprune.select import Depth

        if self.remove is None and self.remove_ratio is None and self.schedule != "alternate":
            others = (self.schedule, self.depth_criterion)
            if any(other is not None for other in others) or self.unit != Recipe.unit:
                raise DepthError("say how many blocks go: --remove-blocks or --remove-ratio")
            return None
        return Depth(
            self.remove,
            self.remove_ratio,
            self.unit,
            cast(Any, self.schedule or "one-shot"),
            Depth.keep_first if self.keep_first is None else self.keep_first,
            Depth.keep_last if self.keep_last is None else self.keep_last,
        )

    def make_depth_criterion(self) -> Criterion | DepthCriterion | None:
        """What blocks are scored with; None where none are removed, or by no scores.

        Raises:
            CriterionError: there is none of that name.
        """
        from fxprune.depth.named import by_name
        from fxprune.select.depth import FIXED

        depth = self.depth()
        if depth is None:
            return None
        of_blocks = None if self.width else self.criterion
        if of_blocks is not None and self.depth_criterion is not None:
            raise CriterionError(
                "only blocks go, by one criterion: --criterion or --depth-criterion"
            )
        name = self.depth_criterion or of_blocks
        if depth.schedule in FIXED:
            if name is not None:
                raise CriterionError(f"{depth.schedule} looks at no scores: leave out {name}")
            return None
        return by_name(name or "ppl", self.seed)

    @property
    def samples(self) -> int:
        """Crops that the criterion sees: 10 as in LLM-Pruner, but 128 for covariances (``obs``)."""
        if self.calibration_samples is not None:
            return self.calibration_samples
        return 128 if self.width and self.criterion == "obs" else 10

    def lengths(self, covariances: bool) -> tuple[int, ...]:
        """Tokens in the calibration crops, short ones first.

        Args:
            covariances: whether these are for covariances (``obs``, compensation), which short
                windows alone do not give for long ones.
        """
        if self.calibration_lengths is not None:
            return self.calibration_lengths
        return (128, 1024) if covariances else (128,)

    def make_criterion(self) -> Criterion | None:
        """The criterion of units; None with saved scores, or for depth alone.

        Raises:
            CriterionError: there is none of that name, it scores blocks alone, or not one of the
                two is given.
        """
        from fxprune.depth.named import is_depth_only
        from fxprune.importance.named import by_name

        if not self.width:
            return None
        if (self.criterion is None) == (self.scores is None):
            raise CriterionError("give either a criterion or saved scores")
        if self.criterion is None:
            return None
        if is_depth_only(self.criterion):
            raise CriterionError(
                f"{self.criterion} scores blocks, and units of groups are to go: say "
                f"--depth-criterion {self.criterion} with --remove-blocks; --criterion is for units"
            )
        return by_name(self.criterion, self.seed)

    def _check_only_depth(self) -> None:
        """Refuse what says something about units of groups alone, where none go."""
        plain = Recipe()
        given = [name for name in _OF_UNITS if getattr(self, name) != getattr(plain, name)]
        given += ["compensate"] if self.compensate in ("bias", "least-squares") else []
        if given:
            raise SelectionError(
                f"{given[0].replace('_', '-')} is for units of groups, and only blocks are to go: "
                "leave it out, or say with --ratio, --macs or --kv-cache what else goes"
            )
