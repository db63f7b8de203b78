"""The folder in the form of NVIDIA's Nemotron-NAS: blocks of their own sizes in several engines.

mlx-lm, vLLM, SGLang, TensorRT-LLM and exllamav3 read it as it is. Blocks may have MLPs of their own
widths, and lack attention or MLP; all query heads stay.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fxprune.errors import ServeError
from fxprune.files import write_text, writing
from fxprune.hf.folder import checkpoint, shards
from fxprune.hf.folder.folders import whole
from fxprune.hf.folder.graph_folder import CONFIG, PLAN
from fxprune.hf.open.quiet import quiet
from fxprune.select.target import Target
from fxprune.serve import nemotron_config
from fxprune.serve.blocks import Blocks, blocks_of
from fxprune.serve.decoder import Layer
from fxprune.serve.engine import Engine, Pruned
from fxprune.serve.kin import unlike_llama

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph

_CODE = "configuration_fxprune"
_SAME = (
    "bos_token_id", "eos_token_id", "hidden_size", "initializer_range", "max_position_embeddings",
    "num_attention_heads", "num_key_value_heads", "pad_token_id", "rms_norm_eps",
    "tie_word_embeddings",
)  # fmt: skip


class NemotronNas(Engine):
    """The folder for every engine that reads it.

    Attributes:
        multiple: what widths of MLPs are multiples of.
        own_head_dim: whether heads may be of another size than hidden size / heads.
        attends_first: whether the first layer must have attention; zeros are written where it has
            none.
        code: whether the engine makes the config by the class in the folder.
        how: how to run a folder.
    """

    name: ClassVar[str] = "nemotron-nas"
    multiple: ClassVar[int] = 256
    own_head_dim: ClassVar[bool] = False
    attends_first: ClassVar[bool] = True
    code: ClassVar[bool] = True
    how: ClassVar[str] = "an engine that knows DeciLMForCausalLM (trust_remote_code) loads {path}"

    def target(self, graph: DependencyGraph) -> Target:
        """See :meth:`Engine.target`."""
        module: Any = graph.traced.module
        self._blocks(Pruned(graph.traced.graph_module, getattr(module, "config", None)))
        return Target(
            self.name,
            kinds=("mlp",),
            multiple_of={"mlp": self.multiple},
            depth=("block", "attention", "mlp"),
            biases=True,
        )

    def write(self, pruned: Pruned, path: Path, **options: Any) -> str:
        """See :meth:`Engine.write`. There are no options."""
        self._check_no_options(options)
        checkpoint.check_target(path)
        blocks = self._blocks(pruned)
        if blank := [name for name, tensor in blocks.tensors.items() if tensor.is_meta]:
            raise ServeError(f"{blank[0]!r} is on meta: a model without weights cannot be saved")
        with writing(path), whole(path, replace=True) as folder:
            self._write(folder, blocks, pruned)
        said = self.how.format(path=path)
        if blocks.padded:
            said += "; the first layer has attention of zeros, without which it would not load"
        return said

    def _blocks(self, pruned: Pruned) -> Blocks:
        """What is left of a model.

        Raises:
            ServeError: the engine cannot run it.
        """
        kind = getattr(pruned.config, "model_type", type(pruned.model).__name__)
        try:
            if pruned.config is not None and (why := unlike_llama(pruned.config)):
                raise ServeError(why)
            blocks = blocks_of(pruned, self.attends_first)
            self._check(blocks)
        except ServeError as error:
            raise ServeError(f"{self.name} cannot run this {kind}: {error}") from error
        return blocks

    def _check(self, blocks: Blocks) -> None:
        decoder = blocks.decoder
        heads = decoder.config.num_attention_heads
        if not self.own_head_dim and decoder.head_dim * heads != decoder.hidden:
            raise ServeError(
                f"its {heads} heads have {decoder.head_dim} channels each, and engines take "
                f"{decoder.hidden} / {heads}"
            )
        for layer in decoder.layers:
            if layer.width % self.multiple:
                raise ServeError(
                    f"the MLP of {layer.path} has {layer.width} units, no multiple of "
                    f"{self.multiple}; vllm takes any number"
                )

    def _write(self, folder: Path, blocks: Blocks, pruned: Pruned) -> None:
        from transformers import GenerationConfig

        config = pruned.config
        kinds = {name: (t.dtype, tuple(t.shape)) for name, t in blocks.tensors.items()}
        shards.write_stream(
            folder / shards.WEIGHTS, kinds, lambda name: blocks.tensors[name].detach().cpu()
        )
        write_text(folder / CONFIG, json.dumps(self._config(blocks), indent=2) + "\n")
        if self.code:
            code = Path(nemotron_config.__file__).read_text(encoding="utf-8")
            write_text(folder / f"{_CODE}.py", code)
        with quiet():
            own = getattr(pruned.model, "generation_config", None)
            (own or GenerationConfig.from_model_config(config)).save_pretrained(folder)
            if pruned.tokenizer is not None:
                pruned.tokenizer.save_pretrained(folder)
        if pruned.plan is not None:
            pruned.plan.save(folder / PLAN)
        described = {"library": "transformers", "class": "DeciLMForCausalLM"}
        facts = {"holds": "engine", "engine": self.name, "model": described}
        checkpoint.write_facts(folder, facts)

    def _config(self, blocks: Blocks) -> dict[str, Any]:
        decoder = blocks.decoder
        rope = dict(decoder.config.rope_parameters)
        theta = rope.pop("rope_theta")
        embedding = decoder.tensors["model.embed_tokens.weight"]
        code = f"{_CODE}.{nemotron_config.NemotronNasConfig.__name__}"
        return {
            "architectures": ["DeciLMForCausalLM"],
            **({"auto_map": {"AutoConfig": code}} if self.code else {}),
            "model_type": nemotron_config.NemotronNasConfig.model_type,
            **{name: getattr(decoder.config, name, None) for name in _SAME},
            "attention_bias": blocks.attention_bias,
            "block_configs": [self._block(decoder.hidden, layer) for layer in decoder.layers],
            "head_dim": decoder.head_dim,
            "hidden_act": "silu",
            "intermediate_size": max(layer.width for layer in decoder.layers) or None,
            "mlp_bias": blocks.mlp_bias,
            "num_hidden_layers": len(decoder.layers),
            **({} if rope["rope_type"] == "default" else {"rope_scaling": rope}),
            "rope_theta": theta,
            "torch_dtype": str(embedding.dtype).removeprefix("torch."),
            "vocab_size": embedding.shape[0],
        }

    def _block(self, hidden: int, layer: Layer) -> dict[str, Any]:
        """The entry of a layer."""
        group = layer.heads // layer.kv_heads if layer.heads else None
        return {
            "attention": {
                "no_op": not layer.heads,
                "replace_with_linear": False,
                "n_heads_in_group": group,
            },
            "ffn": {
                "no_op": not layer.width,
                "replace_with_linear": False,
                **self._width(hidden, layer.width),
            },
        }

    def _width(self, hidden: int, width: int) -> dict[str, Any]:
        """How the entry of a layer says the width of its MLP, 0 without one."""
        return {"ffn_mult": ffn_mult(width, hidden) if width else None}


def ffn_mult(width: int, hidden: int) -> float:
    """The factor of which engines make the width of an MLP.

    They compute ``ceil(int(2 * factor * hidden / 3) / 256) * 256``, with six decimals of it.

    Args:
        width: a multiple of 256.
        hidden: channels of the residual stream.
    """
    return round(3 * width / (2 * hidden), 6)


ENGINE = NemotronNas()
