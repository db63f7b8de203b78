"""Compensation: what stays of each consumer makes up for the units that went."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import fx, nn

from fxprune.branches.bypass import bypass
from fxprune.compensate.blockwise import Exit, Schedule, distil, exits, separate
from fxprune.compensate.dense import Dense
from fxprune.compensate.edits import own, revocable
from fxprune.compensate.matching import Match, ends, match
from fxprune.compensate.mended import Mended
from fxprune.compensate.refit import Refit
from fxprune.compensate.report import Compensated, CompensationReport
from fxprune.compensate.streamed import streaming
from fxprune.compensate.temperature import fit_temperature
from fxprune.data import processes
from fxprune.data.calibrate import Batch, Calibration, batches
from fxprune.data.graph_inputs import graph_inputs, masks, only_rows
from fxprune.data.loader import Source
from fxprune.errors import CalibrationError, PlanError
from fxprune.groups.dependency import discover
from fxprune.ops.resize import Resizer
from fxprune.plan import Plan
from fxprune.progress import track
from fxprune.trace.ignored import ignored
from fxprune.trace.lockstep import Lockstep
from fxprune.trace.modes import evaluation, quick_products
from fxprune.trace.traced import Traced

Method = Literal["auto", "bias", "least-squares", "blockwise"]
Target = Literal["residual", "dense", "propagated"]
Scope = Literal["pruned", "all"]
_MUCH, _MANY = 0.2, 32  # of the parameters; batches


@quick_products()
def compensate(
    traced: Traced,
    small: fx.GraphModule,
    plan: Plan,
    calibration: Calibration,
    *,
    method: Method = "least-squares",
    target: Target = "residual",
    scope: Scope | None = None,
    ignore: Sequence[str] = (),
    only: Sequence[str] = (),
    damping: float | None = None,
    temperature: bool = True,
    schedule: Schedule | None = None,
    batch_size: int | None = 4,
    progress: bool = False,
    stream: Source | None = None,
    mended: Mended | None = None,
) -> CompensationReport:
    """Mend a pruned model by forward passes only: new values for the weights that stay.

    The consumers (``o_proj``, ``down_proj``, whatever reads pruned units) are taken in graph order.
    Each sees the inputs that the pruned model gives it, all consumers before it being mended.

    * ``bias`` (FLAP, 2312.11983, section 4.3): the bias gains ``W_removed mean(x_removed)``, the
      mean being over the calibration tokens of the dense model.
    * ``least-squares`` (as in OSSCAR and ZipLM): the weight becomes the minimum of
      ``||Y - X W^T||^2 + sum_j lambda_j ||W_j - W_kept,j||^2`` with
      ``lambda_j = damping * (X^T X)_jj``, X the inputs in the pruned model. A bias that the
      consumer has, of its own or gained by the plan, is fitted too (X and Y are then centred).
      Tokens that an attention mask hides do not count.

    * ``blockwise``: least squares, then block by block a few epochs of Adam on all parameters that
      only this block reads, norms included, towards the stream that leaves it in the dense model,
      see :class:`fxprune.compensate.blockwise.Distillation`. Every eighth batch is held out of all
      of it and says when to stop.
    * ``auto``: ``blockwise`` from 32 batches on for a model of blocks that is in memory and loses
      20 % of its parameters or more, unless ``scope`` is ``pruned``; else ``least-squares``.

    Least squares refits every product with a weight before the head, not only those that read
    pruned units: a ``q_proj`` or ``gate_proj`` then also gives, for what the pruned model feeds
    into it, what it gave in the dense model (as GPTAQ, 2504.02692, does for quantised layers).
    After it, where the model gives logits and the data labels or ids of tokens, one number is
    fitted for all: the temperature of least loss (temperature scaling, 1706.04599), by way of the
    weight of the last norm or, if others read that, of the head. A refitted model is else too sure
    of itself.

    Of weights that are stacked over experts each matrix is refitted by itself, to what it gave in
    the dense model to the tokens that are sent to it in both, as long as these are twice as many as
    its inputs.

    The dense model is the whole original, so that what stays makes up for the residual branches and
    blocks that the plan removes: the last product that is added to the stream before them aims at
    the stream behind them, all that follow at what the original has where they are. If a norm
    stands between that product and the stream, or if the stream before them is read elsewhere too,
    those that follow do it alone. ``bias`` and ``propagated`` mend what units left behind and
    nothing else: for them the dense model is the original without those branches and blocks.

    A consumer whose weight is used in several places (tied or shared) is left alone, and a
    convolution in groups, three dimensions or transposed; the report says which and why.

    Memory: the values alive at one node, of all batches, of the dense and of the pruned model;
    one consumer's normal matrix in float64; a copy of the changed tensors.

    Args:
        traced: the original, with its weights.
        small: what :func:`fxprune.rewrite` made of it by the plan. Values of its parameters
            change, nothing else; a bias that it shares with the original becomes its own first.
        plan: the plan.
        calibration: data as for :func:`fxprune.estimate`.
        method: ``auto``, ``bias``, ``least-squares`` or ``blockwise``.
        target: what least squares aims at: ``dense``, the output that the consumer has in the
            dense model; ``residual``, that and what the residual stream which it is added to lacks
            by then, so that the stream, not the branch alone, comes back to what it was; or
            ``propagated``, the output that the original weight gives for all units, computed from
            what the pruned model feeds into the layer (nothing of earlier layers is undone).
        scope: ``pruned``, the consumers of pruned units, or ``all``, every product with a weight
            but the head; None is ``all`` for least squares that aim at the dense model.
        ignore: names of modules, or :mod:`fnmatch` patterns, whose tensors keep their values.
        only: likewise, of modules outside of which tensors do.
        damping: how much the weights of each input are held to what they are, relative to that
            input's own mean square. (Relative to the mean over inputs, the few massive
            activations of language models would hold all others fast.) None chooses for each
            consumer, from 0.1 to 8, what leaves least on every fourth batch, and then fits to all;
            0.5 where there are fewer than four batches.
        temperature: fit one after least squares.
        schedule: how long and how fast ``blockwise`` trains each block.
        batch_size: sequences per forward pass and, of ``blockwise``, per step; None takes the
            batches as they are. A graph that takes one number alone gets as many.
        progress: show a progress bar.
        stream: where to read weights from, see :func:`fxprune.estimate`, for models that do not fit
            into memory: those from one consumer to the next are there at a time. ``small`` is on
            ``meta`` and stays so.
        mended: with ``stream``, takes the new values; what it has already is not mended again.

    Returns:
        The relative output error of each consumer before and after, and the temperature.

    Raises:
        CalibrationError: the data does not fit the graph or gives values that are not finite (the
            message names the consumer), the original has lost weights, or an option has no meaning.
            ``small`` is then unchanged.
        PlanError: the plan does not fit the model, or ``bias`` meets a Linear without a bias.
        RewriteError: ``small`` is not what the plan makes of the model.
    """
    started = time.perf_counter()
    check_options(method, target, scope, damping)
    if scope is None:
        scope = "pruned" if method == "bias" or target == "propagated" else "all"
    traced = bypass(traced, plan.removed)
    device = None if stream is None else stream.device
    size = batch_size and (only_rows(traced) or batch_size)
    data = batches(traced.module, calibration, size, device)
    dense = Dense.of(traced, whole=method != "bias" and target != "propagated")
    _check_weights(dense.traced, method, stream)
    graph = discover(traced)
    plan.check(graph)
    resize = Resizer(graph.inferred, plan.kept_units(graph), traced.sizes)
    left = ignored(traced, ignore, only)
    where = {"everywhere": scope == "all", "stream": target == "residual" and method != "bias"}
    found = match(graph, dense, small, plan, resize, **where, ignore=left)
    pays = stream is None and scope != "pruned" and _pays(plan, data)
    method, blocks = _trained(method, pays, traced, small, dense)
    if method == "bias":
        found = tuple(_with_bias(traced, m) if isinstance(m, Match) else m for m in found)
    if target == "propagated":
        _check_propagated(found)
    matches = [each for each in found if isinstance(each, Match)]
    held, among = _held_out(data) if blocks else range(0), processes.current()
    seen = [batch for number, batch in enumerate(data) if number not in held]
    mine = list(enumerate(seen)) if among is None else among.share(seen)
    first = [graph_inputs(traced, batch) for _, batch in mine]
    validates = [place for place, (number, _) in enumerate(mine) if number % 4 == 3]
    inputs = [graph_inputs(traced, batch) for batch in data] if blocks else []
    if blocks:
        separate(traced, small)
    for each in matches:
        own(each.owner, each.weight_name, traced.tensors[each.consumer.site.tensor])
        if each.holder is not None and each.fits_bias:
            own(each.holder, each.bias_name, traced.tensors.get(each.consumer.bias or ""))
    results: dict[fx.Node, Compensated] = {}
    run = dense.traced.graph_module
    apart = streaming(graph, resize, dense, small, plan, stream, mended)
    with evaluation(run), evaluation(small), torch.no_grad(), revocable() as write, apart as pieces:
        stops, keep = ends(matches)
        late = [node for m in matches if m.stacked for node in m.stacked.stacks[1].taken]
        there, here = ({}, {}) if pieces is None else pieces.runs()
        write = write if pieces is None else pieces.write
        refit = Refit(
            traced=traced,
            dense=Lockstep(run, first, stops[0], keep, **there),
            pruned=Lockstep(small, first, stops[1], keep, late, **here),
            masks=[masks(traced, values) for values in first],
            propagated=target == "propagated",
            damping=damping,
            held=validates if damping is None else (),
            write=write,
            among=among,
            shared={a.source for a, b in pairwise(matches) if a.source is b.source},
            original=(dense.traced.tensors if pieces is None else pieces.dense).__getitem__,
        )
        mend = refit.bias if method == "bias" else refit.least_squares
        for each in track(matches, "compensating", progress):
            results[each.node] = mend(each) if pieces is None else pieces.mend(refit, mend, each)
        del refit, mend
        how = schedule or Schedule()
        graphs = traced, resize, dense, small
        every = inputs, [masks(traced, values) for values in inputs], held
        distilled = distil(*graphs, blocks, *every, how, write, left, progress) if blocks else ()
        fitted = None
        if temperature and method != "bias":
            fitted = fit_temperature(
                graph, small, data, write, ignore=left, progress=progress, pieces=pieces
            )
    done = tuple(each if isinstance(each, Compensated) else results[each.node] for each in found)
    return CompensationReport(
        method,
        target,
        done,
        time.perf_counter() - started,
        temperature=fitted if isinstance(fitted, float) else None,
        no_temperature=fitted if isinstance(fitted, str) else None,
        blocks=distilled,
    )


def _held_out(data: Sequence[Batch]) -> range:
    """Numbers of the batches that say when to stop.

    Raises:
        CalibrationError: there are fewer than two.
    """
    if len(data) < 2:
        raise CalibrationError(
            "method='blockwise' holds every eighth batch out to know when to stop, and there is "
            "one batch: give more data, or a smaller batch_size="
        )
    return range(min(7, len(data) - 1), len(data), 8)


def check_options(
    method: str, target: str = "residual", scope: str | None = None, damping: float | None = None
) -> None:
    """Refuse options that have no meaning, alone or together.

    Raises:
        CalibrationError: the message names the option.
    """
    for name, value, known in (
        ("method", method, get_args(Method)),
        ("target", target, get_args(Target)),
        ("scope", "all" if scope is None else scope, get_args(Scope)),
    ):
        if value not in known:
            raise CalibrationError(f"{name}={value!r}: choose from {', '.join(known)}")
    if damping is not None and not (math.isfinite(damping) and damping >= 0):
        raise CalibrationError(f"damping={damping}: it must be 0 or more")
    if method == "bias" and target == "propagated":
        raise CalibrationError("the means of method='bias' are those of the dense model")
    if method == "bias" and scope == "all":
        raise CalibrationError("method='bias' is for units that go: use scope='pruned'")


def _pays(plan: Plan, data: Sequence[Batch]) -> bool:
    """Whether blockwise distillation does: where much goes, and there is much to learn from."""
    return len(data) >= _MANY and (plan.parameters_after <= (1 - _MUCH) * plan.parameters_before)


def _trained(
    method: Method, pays: bool, traced: Traced, small: fx.GraphModule, dense: Dense
) -> tuple[Method, list[Exit]]:
    """What ``auto`` is, and the blocks that are trained.

    Raises:
        CalibrationError: there are none, and ``blockwise`` was asked for.
    """
    trains = method == "blockwise" or (method == "auto" and pays)
    blocks = exits(traced, small, dense) if trains else []
    if method == "auto":
        return "blockwise" if blocks else "least-squares", blocks
    if trains and not blocks:
        raise CalibrationError(
            f"{type(traced.module).__name__} has no blocks to distil one by one: use "
            "compensation='least-squares'"
        )
    return method, blocks


def _check_weights(traced: Traced, method: Method, stream: Source | None) -> None:
    """The original must still have its weights, or there is a source of them."""
    if stream is not None:
        if method == "blockwise":
            raise CalibrationError("method='blockwise' trains with all weights there: no stream=")
        return
    for node in traced.graph_module.graph.nodes:
        if node.op == "get_attr" and (tensor := traced.tensors.get(str(node.target))) is not None:
            if tensor.is_meta:
                raise CalibrationError(
                    f"{node.target!r} is on meta: compensation needs the original's weights"
                )
            if tensor.shape != node.meta["val"].shape:
                raise CalibrationError(
                    f"{node.target!r} was freed when the model was rewritten: rewrite it without "
                    "consume=True to compensate"
                )


def _with_bias(traced: Traced, match: Match) -> Match | Compensated:
    """The consumer, if it has a bias that may change."""
    if match.fits_bias:
        return match
    if match.bias is not None:
        return Compensated(match.name, skipped="its bias is used in several places")
    if isinstance(traced.module.get_submodule(match.consumer.module), nn.Linear):
        raise PlanError(
            f"{match.name} has no bias to compensate with: select with gain_bias=True, or use "
            "method='least-squares'"
        )
    return Compensated(
        match.name, skipped="it has no bias, and is not an nn.Linear that can gain one"
    )


def _check_propagated(found: tuple[Match | Compensated, ...]) -> None:
    """In the original graph, the outputs of the pruned model must be able to stand in."""
    for each in found:
        if isinstance(each, Compensated):
            raise CalibrationError(
                f"target='propagated' needs every consumer, and {each.name} is left alone: "
                f"{each.skipped}. Use target='dense'"
            )
        if each.stacked is not None:
            raise CalibrationError(
                f"target='propagated' cannot be used where tokens are sent to experts, as to those "
                f"of {each.name}. Use target='dense'"
            )
        if each.kept_outputs is not None:
            raise CalibrationError(
                f"target='propagated' cannot be used where the outputs of {each.name} are pruned "
                "too. Use target='dense'"
            )
