"""llama.cpp and what is built on it (Ollama, LM Studio): GGUF files.

Layers of their own sizes go into the architecture ``deci``, which llama.cpp has for NVIDIA's
pruned Llamas (Bercovich et al. 2024, "Puzzle"), or into ``openelm`` (Mehta et al. 2024).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.errors import ServeError
from fxprune.select.target import Target
from fxprune.serve.decoder import decoder_of
from fxprune.serve.engine import Engine, Pruned
from fxprune.serve.gguf import architectures, file, vocabulary
from fxprune.serve.gguf.dense import metadata_of
from fxprune.serve.gguf.matched import matched
from fxprune.serve.gguf.written import Written, form_of

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph

_HOW = "run it with llama-cli -m {}, or any program built on llama.cpp"


class LlamaCpp(Engine):
    """Writes GGUF files."""

    name = "llama.cpp"

    def target(self, graph: DependencyGraph) -> Target:
        """See :meth:`Engine.target`."""
        config = getattr(graph.traced.module, "config", None)
        if config is None:
            raise ServeError(f"{self.name}: not a transformers model")
        own = architectures.own(config)
        if own is None:
            tensors = (graph.traced.original or graph.traced).tensors
            shapes = {name: tensor.shape for name, tensor in tensors.items()}
            depth = ("block",) if architectures.alike(config, shapes) else ()
            kinds = architectures.kinds(config)
            return Target(self.name, kinds=kinds, even=True, prefers={"mlp": 256}, depth=depth)
        form = architectures.uneven(config)
        return Target(
            self.name,
            kinds=("mlp", "attention", "query", "channel"),
            even=form is None,
            prefers={"mlp": 256},
            depth=(form or own).depth,
            biases=form is not architectures.OPENELM,
        )

    def write(
        self,
        pruned: Pruned,
        path: Path,
        *,
        like: str | os.PathLike[str] | None = None,
        dtype: str = "auto",
        progress: bool = False,
        **options: Any,
    ) -> str:
        """Write a GGUF file.

        Args:
            pruned: the model.
            path: the file.
            like: a GGUF of the dense model, of which everything but sizes and values is taken, the
                tokenizer included. Without it the tokenizer must be one that can be told.
            dtype: of matrices: ``f32``, ``f16``, ``bf16``, ``q8_0``; ``auto`` as the values are.
            progress: show a progress bar.
            options: none.

        Raises:
            ServeError: llama.cpp cannot say it; nothing is written.
        """
        self._check_no_options(options)
        config = pruned.config
        own = architectures.own(config)
        if own is None:
            return self._matched(pruned, path, like, dtype, progress)
        decoder = decoder_of(pruned)
        form = form_of(decoder, own)
        kind = file.kind_of(dtype, decoder.tensors["model.embed_tokens.weight"])
        written = Written(decoder, form, kind)
        tensors = dict(written.tensors())
        if like is None:
            base = vocabulary.of(pruned)
        else:
            entries = file.metadata(file.opened(like))
            base = metadata_of(like, entries, own, config, pruned.plan)
        base = file.renamed(base, own.name, form.name)
        file.write(path, form.name, base | written.metadata(), tensors, kind, progress)
        return _HOW.format(path)

    def _matched(self, pruned: Pruned, path: Path, like: Any, dtype: str, progress: bool) -> str:
        if like is None:
            raise ServeError(
                f"{self.name}: what {pruned.config.model_type} is in GGUF is told by a file of the "
                "dense model: --like dense.gguf"
            )
        reader = file.opened(like)
        tensors, entries = matched(pruned, reader)
        kind = file.kind_of(dtype, next(iter(pruned.model.parameters())))
        name = entries["general.architecture"].value
        file.write(path, name, entries, tensors, kind, progress)
        return _HOW.format(path)


ENGINE = LlamaCpp()
