"""The card of a pruned model, and its way to a stand-in of the hub."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard

from fxprune.cli.card import _data
from tests.command_line import run_command
from tests.hf import tiny
from tests.hf.hub import Hub, serving

QUICK = ("--calibration-samples", 3, "--calibration-length", 16, "--eval-samples", 4)
QUICK = (*QUICK, "--compensation-samples", 8, "--written-samples", 0)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    with serving("secret") as found:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", found.endpoint)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", found.endpoint)
        monkeypatch.setenv("HF_TOKEN", "secret")
        yield found


def test_the_card_goes_up_with_all_files_and_no_others(
    tmp_path: Path,
    text: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tiny.folder(tmp_path / "model")
    (model / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n\n# Mine\n")
    out = tmp_path / "small"
    asked = ("prune", model, "--out", out, "--ratio", "10%", "--text", text, *QUICK)
    status, printed, errors = run_command(
        monkeypatch, capsys, *asked, "--push-to-hub", "someone/small-model"
    )
    assert status == 0, errors
    assert f"uploaded: {hub.endpoint}/someone/small-model" in printed
    files = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    sent = hub.repositories["someone/small-model"]
    assert {"README.md", "report.json", "config.json", "plan.json"} <= files.keys()
    # The hub's own file, which says what is large, is added on the way.
    assert {name: sent[name] for name in sent if name != ".gitattributes"} == files
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "mit"
    assert card.data.language == "en"
    assert card.data.tags == ["fxprune", "pruned"]
    assert card.data.library_name == "transformers"
    assert card.data.base_model is None  # a folder has no name that others know
    assert str(tmp_path) not in card.text
    assert card.text.strip().startswith("# small-model")
    for said in (
        "% of the parameters of model",
        "| parameters | 15,504 |",
        "| perplexity |",
        "MLP units",
        "from_pretrained('someone/small-model'",
        "Nothing was retrained.",
    ):
        assert said in card.text
    recipe = yaml.safe_load(card.text.split("```yaml\n")[1].split("```")[0])
    assert recipe["pruning_ratio"] == 0.1
    # Every layer's own widths, as the plan has them.
    assert "| `model.layers` 0" in card.text


def test_a_retrained_model_has_one_too(
    tmp_path: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, out = tiny.folder(tmp_path / "model"), tmp_path / "small"
    asked = ("prune", model, "--out", out, "--ratio", "10%", "--text", text, *QUICK)
    status, _, errors = run_command(
        monkeypatch, capsys, *asked, "--recover", "full", "--recover-steps", 2
    )
    assert status == 0, errors
    card = ModelCard.load(tmp_path / "small-recovered" / "model" / "README.md")
    assert "It was then retrained (" in card.text
    assert "2 steps; perplexity, " in card.text
    assert "It was then retrained" not in ModelCard.load(out / "README.md").text


def test_what_the_original_says_of_itself(tmp_path: Path) -> None:
    known = _data("smollm2").to_dict()
    assert known["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert known["license"] == "apache-2.0"
    # A model that was pruned before is still one of its original.
    folder = tiny.folder(tmp_path / "model")
    card = "---\nlicense: other\nlicense_name: own\nbase_model: a/b\ntags: [{}]\n---\n"
    (folder / "README.md").write_text(card.format("fxprune, pruned"))
    known = _data(str(folder)).to_dict()
    assert (known["base_model"], known["license"], known["license_name"]) == ("a/b", "other", "own")
    (folder / "README.md").write_text(card.format("llama"))
    assert "base_model" not in _data(str(folder)).to_dict()


@pytest.mark.parametrize(
    ("name", "token", "said"),
    [
        ("someone/small", None, "needs a token: hf auth login"),
        ("someone/small", "wrong", "the hub does not take someone/small: Invalid user"),
        ("small", "secret", "give USER/NAME"),
        ("some one/small", "secret", "--push-to-hub some one/small: "),
    ],
)
def test_refused_before_anything_loads(
    tmp_path: Path,
    hub: Hub,
    name: str,
    token: str | None,
    said: str,
    nothing_loads: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    asked = ("prune", tiny.folder(tmp_path / "model"), "--out", tmp_path / "small")
    status, _, errors = run_command(monkeypatch, capsys, *asked, "--push-to-hub", name)
    assert status == 2
    assert said in " ".join(errors.split())
    assert not hub.repositories
    assert not (tmp_path / "small").exists()
