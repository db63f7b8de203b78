"""Values held between pieces: the same bits and the same layout, from memory and from files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fxprune.data.held import Held, holding
from fxprune.errors import CalibrationError

VALUES = {
    "plain": torch.randn(3, 4, 5),
    "turned": torch.randn(3, 4, 5).transpose(0, 2),
    "half": torch.randn(7, 2).bfloat16(),
    "one": torch.tensor(2.5),
    "none": torch.zeros(0, 3),
    "whole": torch.arange(6).view(2, 3),
    "yes": torch.tensor([True, False]),
    "spread": torch.randn(4, 1).expand(4, 3),
}


@pytest.mark.parametrize("limit", [None, 0, 200])
def test_what_goes_in_comes_out(limit: int | None) -> None:
    with holding(limit) as held:
        for name, value in VALUES.items():
            held.put(name, value)
        held.put("size", 12)
        assert (held.filed > 0) == (limit is not None)
        assert held.used <= (limit if limit is not None else held.used)
        for name, value in VALUES.items():
            for found in (held.get(name), held.pop(name)):
                assert found.dtype == value.dtype
                assert torch.equal(found, value)
                if value.is_contiguous() or name == "turned":
                    assert found.stride() == value.stride()
        assert held.pop("size") == 12
        assert (held.used, held.filed) == (0, 0)
        assert not list(held.folder.iterdir())
        assert held.pop("plain") is None
    assert not held.folder.exists()


def test_a_part_does_not_hold_the_whole() -> None:
    with holding() as held:
        held.put("part", torch.randn(100, 10)[:2])
        assert held.get("part").untyped_storage().nbytes() == held.used == 80


def test_what_is_put_again_replaces() -> None:
    with holding(100) as held:
        for _ in range(3):
            held.put("same", torch.ones(50))
        assert held.filed == 200
        assert len(list(held.folder.iterdir())) == 1
        assert held.peak == 200


def fail(folders: list[Path]) -> None:
    with holding(0) as held:
        held.put("value", torch.ones(3))
        folders.append(held.folder)
        raise ZeroDivisionError


def test_the_folder_goes_on_an_error() -> None:
    folders: list[Path] = []
    with pytest.raises(ZeroDivisionError):
        fail(folders)
    assert not folders[0].exists()


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    held = Held(tmp_path / "absent", limit=0)
    with pytest.raises(CalibrationError, match=r"no room for 0 MiB .* take a larger disk"):
        held.put("value", torch.ones(3))
