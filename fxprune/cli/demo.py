"""``fxprune demo``: a real language model pruned, measured, saved and reloaded by one command."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.errors import CheckpointError
from fxprune.progress import step

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from fxprune.data.text import Text

PROMPT = "The moon is smaller than the earth, and"
NEW_TOKENS = 24
RECOVERY_STEPS = 30
WINDOWS = 32  # for perplexity
# Fewer crops than by default: a demonstration takes minutes, not many.
CROPS = 32


def demo(
    out: Path,
    ratio: float | str = 0.2,
    *,
    model: str = "smollm2",
    evaluation: Text | None = None,
    recover: bool = False,
    console: Console | None = None,
) -> None:
    """Prune SmolLM2 on prose out of Python itself and show what it did.

    Args:
        out: folder for the pruned model, the plan, the picture and the figures.
        ratio: fraction of the parameters to remove.
        model: what to prune instead, see :func:`fxprune.hf.open.models.load_model`.
        evaluation: text for perplexity; by default topics that calibration does not see.
        recover: retrain it for a few steps, with the original as the teacher.
        console: where to print.

    Raises:
        FxpruneError: the model cannot be fetched, the folder is something else's, ...
    """
    check_out(out)
    folder = out / "pruned"
    chain = None
    if recover:
        from fxprune.cli.chain import Chain

        chain = Chain(model, folder, "lora", steps=RECOVERY_STEPS, learning_rate=1e-3)
        chain.check()
    import torch
    from rich.console import Console

    from fxprune.cli.card import write_card
    from fxprune.cli.workflow import run
    from fxprune.config import PruneConfig
    from fxprune.data import chat, text
    from fxprune.hf.folder import checkpoint
    from fxprune.hf.open.models import fetch, load_model

    config = PruneConfig(
        pruning_ratio=ratio,
        calibration_samples=CROPS,
        compensation_samples=CROPS,
        calibration_lengths=(128,),
    )
    console = console or Console()
    # Generated text and paths may hold anything, brackets too.
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    fetch(model)
    with step(f"loading {model}"):
        loaded = load_model(model)
    assert loaded.tokenizer is not None
    kind = type(loaded.model).__name__
    say(f"{model}: {kind}, pruning {config.pruning_ratio:.0%} by obs")
    told = continuation(loaded.model, loaded.tokenizer)
    calibration, other = text.builtin()
    outcome = run(
        loaded,
        config,
        folder,
        calibration=calibration,
        evaluation=evaluation or other,
        windows=(WINDOWS, 128),
        reload=lambda: load_model(model).model,
    )
    small, plan = outcome.result.graph_module, outcome.result.plan
    outcome.show(console)
    say(f"\nbefore: {PROMPT}{told}")
    say(f"\nafter: {PROMPT}{continuation(small, loaded.tokenizer)}")
    plan.save(out / "plan.json")
    outcome.result.graph.to_dot(out / "groups.dot", collapse=True)
    outcome.write_report(
        out / "report.json", model=model, config=config.to_dict(), criterion=plan.criterion
    )
    write_card(outcome, base=model, config=config.to_dict())
    with step("reloading"):
        again = checkpoint.load(folder)
        ids = chat.tokens(loaded.tokenizer, PROMPT)[None]
        with torch.no_grad():
            same = torch.equal(
                outcome.result.model(input_ids=ids).logits, again(input_ids=ids).logits
            )
    if not same:
        raise CheckpointError(f"{folder} does not give back what was saved")
    say(
        f"\nreloaded from {folder}: bit-equal logits. {outcome.opened_by}\n"
        f"plan: {out / 'plan.json'}   figures: {out / 'report.json'}\n"
        f"groups: {out / 'groups.dot'} (dot -Tsvg {out / 'groups.dot'} > groups.svg)"
    )
    if chain is not None:
        say(f"\nrecovery: LoRA, {RECOVERY_STEPS} steps of 8 x 128 tokens, the original teaches")
        chain.run(calibration, evaluation or other, WINDOWS).show(console)
        recovered: Any = checkpoint.load(chain.folder)
        say(f"\nrecovered: {PROMPT}{continuation(recovered, loaded.tokenizer)}")
        say(f"recovered model: {chain.folder}   loss: {chain.run_folder / 'loss.svg'}")


def check_out(out: Path) -> None:
    """Refuse a folder that holds something other than an earlier demo.

    Raises:
        CheckpointError: it does.
    """
    from fxprune.files import check_writable
    from fxprune.hf.folder.folders import taken

    check_writable(out)
    ours = (out / "pruned" / "fxprune.json").is_file()
    if not ours and taken(out):
        raise CheckpointError(
            f"{out} exists and is not of an earlier demo: it is left alone; give another with --out"
        )


def continuation(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the model says after the prompt, word by most likely word.

    A GraphModule has neither ``generate`` nor a cache, so each token is a whole forward pass.
    """
    import torch

    from fxprune.data.chat import tokens
    from fxprune.data.loss import logits_of

    ids = tokens(tokenizer, PROMPT)[None]
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            new = logits_of(model, model(input_ids=ids))[:, -1:].argmax(-1)
            if new.item() == tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, new], dim=1)
    return str(tokenizer.decode(ids[0, start:]))
