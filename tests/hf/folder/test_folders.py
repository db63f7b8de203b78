"""Folders appear whole or not at all, also when two write the same one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fxprune.files import replacing
from fxprune.hf.folder.folders import whole


def _fill(target: Path, content: str, *, replace: bool) -> None:
    with whole(target, replace=replace) as made:
        (made / "file").write_text(content)


def test_appears_at_the_end_with_its_parents(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with whole(target, replace=False) as made:
        (made / "file").write_text("x")
        assert not target.exists()
    assert (target / "file").read_text() == "x"
    assert list(target.parent.iterdir()) == [target]


def test_files_are_as_readable_as_others(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    mode = (tmp_path / "plain").stat().st_mode
    with whole(tmp_path / "a", replace=False) as made:
        save_file({"x": torch.ones(2)}, made / "private")
        (made / "private").chmod(0o600)
        (made / "script").touch(0o700)
    assert (tmp_path / "a" / "private").stat().st_mode == mode
    assert (tmp_path / "a" / "script").stat().st_mode == mode | 0o100
    with replacing(tmp_path / "file") as temporary:
        save_file({"x": torch.ones(2)}, temporary)
    assert (tmp_path / "file").stat().st_mode == mode


@pytest.mark.parametrize("replace", [True, False])
def test_an_error_leaves_nothing_behind(tmp_path: Path, replace: bool) -> None:
    target = tmp_path / "a"

    def fill() -> None:
        with whole(target, replace=replace) as made:
            (made / "file").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_the_old_one(tmp_path: Path) -> None:
    _fill(tmp_path / "a", "old", replace=True)
    with pytest.raises(ZeroDivisionError), whole(tmp_path / "a", replace=True):
        raise ZeroDivisionError
    assert (tmp_path / "a" / "file").read_text() == "old"


def test_replace(tmp_path: Path) -> None:
    _fill(tmp_path / "a", "old", replace=True)
    _fill(tmp_path / "a", "new", replace=True)
    assert (tmp_path / "a" / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_the_first_of_two_wins(tmp_path: Path) -> None:
    with whole(tmp_path / "a", replace=False) as made:
        (made / "file").write_text("second")
        _fill(tmp_path / "a", "first", replace=False)
    assert (tmp_path / "a" / "file").read_text() == "first"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_folder_has_ordinary_permissions(tmp_path: Path) -> None:
    _fill(tmp_path / "a", "x", replace=False)
    (tmp_path / "b").mkdir()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
