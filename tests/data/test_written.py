"""What a model writes for its own calibration."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fxprune
from fxprune.config import PruneConfig
from fxprune.data.draw import Draw, as_text
from fxprune.data.text import OWN, Text, crops
from fxprune.data.written import PROMPT, written
from fxprune.errors import CalibrationError
from fxprune.prune import draws
from tests.zoo import BY_NAME


class Letters:
    """As much of a tokenizer as is asked for: a letter is a token."""

    bos_token_id: int | None = 1

    def __len__(self) -> int:
        return 101

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [3 + ord(letter) % 90 for letter in text]}


TOKENIZER: Any = Letters()
TEXT = Text(
    "letters", tuple(f"{n} " + "the quick brown fox jumps over the dog " * 4 for n in "abc")
)


def model(name: str = "llama") -> Any:
    torch.manual_seed(0)
    return BY_NAME[name].build().train()


def test_it_continues_the_text_for_the_same_seed_alike() -> None:
    llama = model()
    state = torch.get_rng_state()
    first = written(llama, TOKENIZER, 6, (24, 48), prompts=TEXT, seed=3)
    assert [tuple(each.shape) for each in first] == [(3, 24), (1, 48)]
    assert torch.equal(state, torch.get_rng_state())
    assert llama.training
    begins = crops(TOKENIZER, TEXT, 3, 12, 3)
    assert torch.equal(first[0][:, :12], begins)
    assert torch.equal(first[1][:, :PROMPT], crops(TOKENIZER, TEXT, 1, PROMPT, 103))
    again = written(llama, TOKENIZER, 6, (24, 48), prompts=TEXT, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = written(llama, TOKENIZER, 6, (24, 48), prompts=TEXT, seed=4)
    assert not torch.equal(first[0], other[0])


def test_without_text_it_begins_with_bos() -> None:
    (found,) = written(model(), TOKENIZER, 4, (16,))
    assert (found[:, 0] == 1).all()
    assert found[:, 1:].unique().numel() > 8


def test_nothing_ends_it_early() -> None:
    llama = model()
    llama.generation_config.eos_token_id = list(range(2, 101))  # whatever is sampled
    (found,) = written(llama, TOKENIZER, 3, (20,), prompts=TEXT)
    assert found.shape == (3, 20)


def test_no_batch_has_more_tokens_than_one_of_the_text() -> None:
    assert [tuple(each.shape) for each in written(model(), TOKENIZER, 300, (16,))] == [
        (128, 16), (128, 16), (44, 16),
    ]  # fmt: skip


def test_it_is_sampled_as_the_model_says() -> None:
    """Of the first token after a prompt: frequencies against probabilities; and the likeliest."""
    llama = model().eval()
    ids = torch.full((2000, 4), 7)
    found = torch.cat(written(llama, TOKENIZER, 2000, (5,), prompts=ids))
    assert (found[:, :2] == 7).all()
    with torch.no_grad():
        chances = llama(found[:1, :2]).logits[0, -1].softmax(-1)
    counts = torch.bincount(found[:, 2], minlength=len(chances)) / len(found)
    assert (counts - chances).abs().max() < 0.03
    (narrow,) = written(llama, TOKENIZER, 50, (5,), prompts=ids, top_p=1e-6)
    assert (narrow[:, 2] == chances.argmax()).all()


def test_what_is_refused() -> None:
    with pytest.raises(CalibrationError, match="BertForMaskedLM cannot write its own"):
        written(BY_NAME["bert"].build(), TOKENIZER, 2, (16,))
    silent = Letters()
    silent.bos_token_id = None
    with pytest.raises(CalibrationError, match="no BOS token"):
        written(model(), silent, 2, (16,))  # type: ignore[arg-type]
    for wrong in ({"temperature": 0.0}, {"top_p": 1.5}):
        with pytest.raises(CalibrationError, match="temperature="):
            written(model(), TOKENIZER, 2, (16,), **wrong)  # type: ignore[arg-type]


def test_pruning_sees_it_beside_the_text() -> None:
    found = []
    for count in (0, 8):
        done = fxprune.prune(
            model().eval(),
            calibration=TEXT,
            tokenizer=TOKENIZER,
            calibration_samples=4,
            compensation_samples=4,
            calibration_lengths=(16,),
            written_samples=count,
        )
        found.append(done.scores)
    assert any(not torch.equal(found[0][name], found[1][name]) for name in found[0])
    with pytest.raises(CalibrationError, match="joins text"):
        fxprune.prune(model().eval(), calibration=torch.ones(2, 8).long(), written_samples=8)


def test_three_for_each_crop_unless_a_number_is_given() -> None:
    def counts(name: str, **options: Any) -> tuple[int, int]:
        config = PruneConfig(**options)
        return tuple(d.written for d in draws(model(name), config, config.make_criterion()))  # type: ignore[return-value]

    assert counts("llama") == (384, 384)
    assert counts("llama", calibration_samples=6, compensation_samples=9) == (18, 27)
    assert counts("llama", written_samples=0) == (0, 0)
    assert counts("llama", written_samples=7) == (7, 7)
    assert counts("llama", effort="low") == (0, 0)
    assert counts("llama", effort="high") == (768, 768)
    assert counts("llama", effort="high", written_samples=7) == (7, 7)
    crops = [d.count for d in draws(model(), PruneConfig(effort="low"), fxprune.OBS())]
    assert crops == [64, 64]
    # The papers of other criteria take text alone.
    assert counts("llama", criterion="taylor") == (0, 384)
    # Nothing is written by what does not continue its input.
    assert counts("bert") == counts("t5") == (0, 0)


def test_the_models_own_text_is_all_written() -> None:
    assert as_text("self") is OWN
    draw = Draw(3, 8, (8, 32), 5)
    known: dict[Draw, list[torch.Tensor]] = {}
    found = draw.of(model(), TOKENIZER, OWN, known)
    assert [tuple(each.shape) for each in found] == [(4, 8), (1, 32), (5, 8)]
    assert all((each[:, 0] == 1).all() for each in found)
    assert not torch.equal(found[0][:4], found[2][:4])
    assert draw.of(model(), TOKENIZER, OWN, known) is found
    options: Any = {"calibration_samples": 4, "compensation_samples": 4}
    done = fxprune.prune(
        model().eval(),
        calibration="self",
        tokenizer=TOKENIZER,
        calibration_lengths=(16,),
        **options,
    )
    assert done.compensation is not None


def test_a_model_whose_code_cannot_generate_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise AttributeError("no cache")

    llama = model()
    monkeypatch.setattr(llama, "generate", fails)
    with pytest.raises(CalibrationError, match=r"\(no cache\): leave it out, written_samples=0"):
        written(llama, TOKENIZER, 2, (16,), prompts=TEXT)
