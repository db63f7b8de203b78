"""What several commands take, and how what is typed is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxprune.errors import CalibrationError, FxpruneError, SelectionError
from fxprune.files import check_writable

MODEL = "A local folder, a hub name, a GGUF file, a config.json, or smollm2."
Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL, show_default=False)]


def shape_of(given: str) -> tuple[int, int]:
    """``BATCHxTOKENS``."""
    batch, _, length = given.partition("x")
    if not (batch.isdecimal() and length.isdecimal()):
        raise SelectionError(f"--shape {given}: give BATCHxTOKENS, such as 1x128")
    return int(batch), int(length)


def numbers(option: str, given: str) -> tuple[int, ...]:
    """Numbers with commas."""
    try:
        return tuple(int(number) for number in given.split(","))
    except ValueError:
        raise CalibrationError(f"{option} {given!r}: numbers with commas") from None


def layer_ratio_of(given: str) -> tuple[str, str]:
    """``PATTERN=FRACTION``."""
    pattern, _, fraction = given.rpartition("=")
    if not pattern:
        raise SelectionError(f"--layer-ratio {given!r}: write PATTERN=FRACTION")
    return pattern, fraction


def by_key(option: str, given: str) -> str | dict[str, str]:
    """One value, or ``KIND=VALUE`` and ``PATTERN=VALUE`` with commas."""
    if "=" not in given:
        return given
    pairs = [part.rpartition("=") for part in given.split(",")]
    if not all(key.strip() and value.strip() for key, _, value in pairs):
        raise SelectionError(f"{option} {given!r}: write a number, or KIND=NUMBER with commas")
    return {key.strip(): value.strip() for key, _, value in pairs}


def numbers_by_key(option: str, given: str) -> int | dict[str, int]:
    """Likewise, of whole numbers."""
    found = by_key(option, given)
    values = found.values() if isinstance(found, dict) else [found]
    if not all(value.isdecimal() for value in values):
        raise SelectionError(f"{option} {given!r}: write a number, or KIND=NUMBER with commas")
    return {k: int(v) for k, v in found.items()} if isinstance(found, dict) else int(found)


def check_parent(file: Path | None) -> None:
    """Refuse a file that cannot be written, before any work."""
    if file is None:
        return
    if not file.resolve().parent.is_dir():
        raise FxpruneError(f"no folder {file.resolve().parent} to write {file.name} into")
    if file.is_dir():
        raise FxpruneError(f"{file} is a folder, and a file is to be written there")
    check_writable(file)


def check_least(option: str, value: int, least: int) -> None:
    """Refuse a number below the least that means something."""
    if value < least:
        raise FxpruneError(f"{option} is {value}: at least {least}")
