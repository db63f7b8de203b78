"""What runs pruned models: the form that every engine has, and where they are found."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fxprune.errors import ServeError
from fxprune.plan import Plan
from fxprune.select.target import Target

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from fxprune.groups.dependency import DependencyGraph

# Name -> module, which has the engine as ENGINE.
_BUILT_IN = {
    "transformers": "fxprune.serve.stock",
    "transformers-remote": "fxprune.serve.remote",
    "llama.cpp": "fxprune.serve.llama_cpp",
    "nemotron-nas": "fxprune.serve.nemotron",
    "mlx": "fxprune.serve.mlx",
    "vllm": "fxprune.serve.vllm",
    "onnx": "fxprune.serve.onnx",
    "torch": "fxprune.serve.pt2",
}
_REGISTERED: dict[str, Engine] = {}


@dataclass(frozen=True, eq=False)
class Pruned:
    """A pruned model to be written for an engine.

    Attributes:
        model: the graph, or the transformers model, with its values.
        config: of the original, where that is a transformers model.
        plan: what was kept; None if it is not known.
        tokenizer: of the model, if there is one.
    """

    model: nn.Module
    config: Any = None
    plan: Plan | None = None
    tokenizer: PreTrainedTokenizerBase | None = None


class Engine(ABC):
    """What runs pruned models somewhere: what it can say, and how it is written.

    Attributes:
        name: as users type it.
    """

    name: ClassVar[str]

    @abstractmethod
    def target(self, graph: DependencyGraph) -> Target:
        """The limits on plans for a model.

        Args:
            graph: the groups of the model; it need not have weights.

        Raises:
            ServeError: the engine cannot run the model, whatever is removed. Says why.
        """

    def check(self, plan: Plan, graph: DependencyGraph) -> list[str]:
        """Why the engine cannot run what a plan leaves; one reason a line, empty if it can.

        Args:
            plan: a plan for the model.
            graph: the groups of the model, without what the plan removes whole.
        """
        try:
            target = self.target(graph)
        except ServeError as error:
            return [str(error)]
        return target.reasons(graph, plan)

    def require(self, plan: Plan, graph: DependencyGraph) -> None:
        """Refuse a plan that the engine cannot run; the arguments are those of :meth:`check`.

        Raises:
            ServeError: it cannot. Gives all reasons.
        """
        if reasons := self.check(plan, graph):
            listed = "".join(f"\n  {reason}" for reason in reasons)
            raise ServeError(f"{self.name} cannot run what the plan leaves:{listed}")

    def _check_no_options(self, options: Mapping[str, Any]) -> None:
        """Refuse options that the engine does not have.

        Raises:
            ServeError: there are some.
        """
        if options:
            raise ServeError(f"{self.name} has no option {next(iter(options))!r}")

    @abstractmethod
    def write(self, pruned: Pruned, path: Path, **options: Any) -> str:
        """Write a pruned model as the engine reads it.

        Args:
            pruned: the model.
            path: the file or folder. It appears whole or not at all.
            options: those of the engine.

        Returns:
            How to run it, in words.

        Raises:
            ServeError: the engine cannot say it; nothing is written.
        """


def engine(name: str) -> Engine:
    """The engine of a name.

    Raises:
        ServeError: there is none.
    """
    check_name(name)
    if name in _REGISTERED:
        return _REGISTERED[name]
    found: Engine = importlib.import_module(_BUILT_IN[name]).ENGINE
    return found


def check_name(name: str) -> None:
    """Refuse what is no engine's name.

    Raises:
        ServeError: there is none.
    """
    if name not in engines():
        near = get_close_matches(str(name), engines(), 1)
        hint = f"; did you mean {near[0]}?" if near else f": choose from {', '.join(engines())}"
        raise ServeError(f"no engine {name!r}{hint}")


def engines() -> tuple[str, ...]:
    """The names of all engines."""
    return (*_BUILT_IN, *_REGISTERED)


def register_engine(added: Engine) -> None:
    """Make an engine known by its name, to ``--for`` and ``target=`` too.

    Raises:
        ServeError: there is one of that name.
    """
    if added.name in engines():
        raise ServeError(f"there is an engine {added.name!r} already")
    _REGISTERED[added.name] = added
