"""What a table calls a configuration."""

from __future__ import annotations

from collections.abc import Mapping

from fxprune.config import PruneConfig


def label(config: PruneConfig) -> str:
    """A short name for tables: what differs from the defaults, the seed left out."""
    goal = config.goal()
    if (budget := goal.get("budget")) is None:
        return f"{series(config)}, {100 * float(goal['pruning_ratio']):g} %"
    limits = budget.limits or {"units removed": budget.removed}
    words = [f"{name} {number:,}" for name, number in limits.items()]
    return ", ".join([series(config), *words])


def series(config: PruneConfig) -> str:
    """The label without the ratio: configurations of one line in a plot share it."""
    default = PruneConfig()
    name, options = named(config)
    free = [config.ranking or "global"] if config.ranking or config.target is None else []
    parts = [name, *free, *([f"for {config.target}"] if config.target is not None else [])]
    parts += [f"{option} {value}" for option, value in options.items()]
    parts += _chosen(config)
    counts = {"samples": config.calibration_samples, "written": config.written_samples}
    parts += [f"{count} {what}" for what, count in counts.items() if count is not None]
    if config.calibration_lengths is not None:
        parts.append(f"{'+'.join(map(str, config.calibration_lengths))} tokens")
    if config.keep_first or config.keep_last:
        parts.append(f"keep {config.keep_first}/{config.keep_last} layers")
    if config.compensation is None:
        parts.append("not compensated")
    elif config.compensation != "auto":
        parts.append(config.compensation)
    if config.effort != default.effort:
        parts.append(f"effort {config.effort}")
    seen = config.compensation_samples
    if config.compensation is not None and seen != default.compensation_samples:
        parts.append(f"compensated on {seen} samples")
    return ", ".join(parts)


def _chosen(config: PruneConfig) -> list[str]:
    """How units are chosen by the scores, where not as by default."""
    default, parts = PruneConfig(), []
    if config.normalise is not None:
        parts.append(f"normalise {config.normalise}")
    if config.search != default.search:
        parts.append("+".join([config.search, *config.branches]))
    if config.steps > 1:
        parts.append(f"{config.steps} steps")
    if config.cost_aware is not None:
        parts.append("cost-aware" if config.cost_aware else "not cost-aware")
    if config.kinds != default.kinds:
        parts.append("+".join(config.kinds))
    return parts


def named(config: PruneConfig) -> tuple[str, dict[str, object]]:
    """The name of the criterion, and its options."""
    given = config.to_dict().get("criterion", "obs")
    if isinstance(given, Mapping):
        return str(given["name"]), {key: v for key, v in given.items() if key != "name"}
    return str(given), {}
