"""What pruning gives: the smaller model, how it came about, and how to save it."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from fxprune.compensate.report import CompensationReport
from fxprune.config import PruneConfig
from fxprune.depth import Removal
from fxprune.errors import CheckpointError, FxpruneWarning, ShrinkError
from fxprune.groups.dependency import DependencyGraph
from fxprune.hf.folder.state import State
from fxprune.hf.vocabulary.trim import Trimmed
from fxprune.importance.scores import Scores
from fxprune.measure.latency_report import LatencyReport
from fxprune.plan import Plan
from fxprune.proof.oracle import VerifyReport
from fxprune.rewrite.on_demand import SmallWeights
from fxprune.select.surcharge import Surcharge
from fxprune.trace import Traced

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SAVE_AS = ("auto", "transformers", "graph")


@dataclass(frozen=True, eq=False)
class PruneResult:
    """What :func:`fxprune.prune` gives.

    Attributes:
        graph_module: the smaller model as a GraphModule.
        plan: what was kept of ``graph``; of the original if no tokens went, else see :attr:`whole`.
        report: what the oracle measured, before compensation; None if it did not run.
        traced: the traced original, without the tokens that went.
        graph: its groups, without removed blocks and branches.
        scores: importance of every unit in the original, to plan again at another ratio.
        compensation: what compensation did; None if there was none.
        removal: which blocks or branches went, and their scores; None if only units of groups.
        latency: how a budget of latency was met; None if there was none.
        config: how it was pruned.
        tokenizer: the one that was given.
        surcharge: what the limits of the engine cost that the model is for; None if it is for none.
        weights: those of ``graph_module``, where it is on ``meta`` as it was pruned in pieces:
            :meth:`save` reads, slices and writes one tensor after the other.
        state: what was found on the way; ``state.end()`` removes it, once the result is saved.
        vocabulary: which tokens went first; None if none did.
    """

    graph_module: fx.GraphModule
    plan: Plan
    report: VerifyReport | None
    traced: Traced
    graph: DependencyGraph
    scores: Scores
    compensation: CompensationReport | None = None
    removal: Removal | None = None
    latency: LatencyReport | None = None
    config: PruneConfig | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    surcharge: Surcharge | None = None
    weights: SmallWeights | None = None
    state: State = field(default_factory=State)
    vocabulary: Trimmed | None = None

    @functools.cached_property
    def whole(self) -> Plan:
        """All that went as one plan for the original, its tokens too."""
        if self.vocabulary is None:
            return self.plan
        return self.vocabulary.then(self.traced, self.plan)

    @property
    def model(self) -> nn.Module:
        """The smaller model: of its own transformers class, on the tensors of ``graph_module``.

        It has ``generate`` and a cache. Where no transformers config can say the sizes it is
        ``graph_module``, with a warning that says why; and so it is for any other module.
        """
        if isinstance(self._shrunk, nn.Module):
            return self._shrunk
        if self._is_transformers:
            words = f"result.model is the GraphModule: {self._shrunk}"
            warnings.warn(words, FxpruneWarning, stacklevel=2)
        return self.graph_module

    @property
    def _is_transformers(self) -> bool:
        from fxprune.hf.open.architecture import is_transformers

        return is_transformers(self.traced.module)

    @functools.cached_property
    def _shrunk(self) -> PreTrainedModel | ShrinkError:
        from fxprune.hf.shrink.shrink import shrink

        original: Any = self.traced.module
        if not self._is_transformers:
            return ShrinkError(f"{type(original).__name__} is not a transformers model")
        try:
            return shrink(original, self.plan, self.graph_module, traced=self.traced, share=True)
        except ShrinkError as error:
            return error

    def save(
        self,
        folder: str | Path,
        *,
        save_as: str = "auto",
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> str:
        """Save the smaller model: as a transformers checkpoint, or else as a graph.

        Args:
            folder: where to save.
            save_as: ``transformers``, a checkpoint of its class; ``graph``, of any model, for
                :func:`fxprune.load`; ``auto``, the first where its config can say the sizes.
            tokenizer: saved along; the one that pruning was given, if left out.

        Returns:
            How to open it, in words.

        Raises:
            CheckpointError: the folder holds something else, or cannot be written.
            ShrinkError: ``save_as`` is ``transformers`` and no config can say the sizes.
        """
        from fxprune.hf.folder import checkpoint, module_folder
        from fxprune.hf.folder.weights import tensors_of_shrunk
        from fxprune.hf.open.architecture import has_class

        if save_as not in SAVE_AS:
            raise CheckpointError(f"save_as={save_as!r}: choose from {', '.join(SAVE_AS)}")
        folder = Path(folder)
        checkpoint.check_target(folder)
        tokenizer = self.tokenizer if tokenizer is None else tokenizer
        opened, why = f"open it with fxprune.load({str(folder)!r})", ""
        if save_as != "graph" and (self._is_transformers or save_as == "transformers"):
            try:
                if isinstance(self._shrunk, ShrinkError):
                    raise self._shrunk
                small, tensors = self._shrunk, None
                if self.weights is not None:
                    tensors = tensors_of_shrunk(small, self.traced, self.plan, self.weights)
                checkpoint.save(
                    small,
                    folder,
                    plan=self.whole,
                    tokenizer=tokenizer,
                    tensors=tensors,
                    within=self.state.folder,
                )
            except (ShrinkError, CheckpointError) as error:
                if save_as == "transformers":
                    raise
                why = f" (not for transformers: {error})"
            else:
                return module_folder.how_to_open(folder, self._shrunk)
        checkpoint.save(
            self.graph_module,
            folder,
            plan=self.plan,
            traced=self.traced,
            tokenizer=tokenizer,
            tensors=None if self.weights is None else self.weights.of_graph,
            within=self.state.folder,
        )
        if not (self._is_transformers and has_class(self.traced.module)):
            opened = f"open it with fxprune.load({str(folder)!r}, model=the original architecture)"
        return opened + why
