"""Files that appear whole or not at all, and values as they hold them."""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

from fxprune.errors import CheckpointError, ConfigError, FxpruneError


class _NotWrittenError(CheckpointError):
    """Knows why, so that whoever writes a folder of such files can name the folder."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} cannot be written: {why}")
        self.why = why


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, renamed to it when the block ends without an error.

    An interrupted write leaves an older file as it was.

    Raises:
        CheckpointError: the file cannot be written, because the disk is full, say.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # some libraries write files that only their owner can read
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(NotADirectoryError):
                temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file of text, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one line that something cannot be written, and why.

    Args:
        path: the file or folder that the block writes.

    Raises:
        CheckpointError: it cannot.
    """
    try:
        yield
    except Exception as error:
        why = error.why if isinstance(error, _NotWrittenError) else why_not_written(error)
        if not why:
            raise
        raise _NotWrittenError(path, why) from error


class Patient(io.RawIOBase):
    """A stream that keeps the error of a write for later.

    torch's writer of archives ends the whole process when it is thrown away after one.

    Args:
        stream: what is written to.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__()
        self._stream = stream
        self._error: OSError | None = None

    def seekable(self) -> bool:
        """As the stream is."""
        return self._stream.seekable()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move in the stream."""
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """The place in the stream."""
        return self._stream.tell()

    def write(self, data: Any) -> int:
        """Write, or after an error do as if."""
        if self._error is None:
            try:
                self._stream.write(data)
            except OSError as error:
                self._error = error
        return memoryview(data).nbytes

    def finish(self) -> None:
        """Raise the first error, if there was one."""
        if self._error is not None:
            raise self._error
        self._stream.flush()


def why_not_written(error: Exception) -> str:
    """What the system says of a file ("" if an error is no such thing)."""
    if isinstance(error, FxpruneError):
        return ""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # The libraries that write for us have errors of their own.
    if found := re.search(r"I/O error: (.*?)( \(os error \d+\))?$", str(error)):
        return found[1]
    return ""


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a place where nothing can be written, before there is something to write.

    Args:
        path: a file or folder that is to be made, its parents too where they are missing.

    Raises:
        CheckpointError: a parent is a file, or nothing can be made in the nearest one there is.
    """
    path = Path(path)
    there = path.absolute().parent
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise CheckpointError(f"{path} cannot be written: {there} is not a folder")
    # Asked of the disk itself: permissions do not tell of a read-only one, or of a quota.
    with writing(path), tempfile.TemporaryFile(dir=there) as stream:
        stream.write(b"0")


def check_room(path: str | os.PathLike[str], size: int, what: str) -> None:
    """Refuse a disk that is too small, before there is something to write.

    Args:
        path: a file or folder that is to be made.
        size: bytes that it will take.
        what: it is, in words.

    Raises:
        CheckpointError: there is less room.
    """
    there = Path(path).absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if size > free:
        raise CheckpointError(
            f"{there} has {free / 2**30:.2f} GiB free, and {what} takes up to "
            f"{size / 2**30:.2f} GiB: make room, or take a larger disk"
        )


def write_values(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values as YAML or, to a path that ends in ``.json``, as JSON."""
    if path.suffix == ".json":
        write_text(path, json.dumps(values, indent=1) + "\n")
    else:
        import yaml  # type: ignore[import-untyped]

        write_text(path, yaml.safe_dump(values, sort_keys=False))


def read_values(path: Path) -> Any:
    """Read what :func:`write_values` wrote.

    Raises:
        ConfigError: it cannot be read.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as a configuration: {error}") from error


def check_fields(kind: type, given: Mapping[str, Any]) -> None:
    """Refuse what is no field of a dataclass.

    Raises:
        ConfigError: there is none of that name; offers close ones.
    """
    known = [each.name for each in fields(kind)]
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {', '.join(close)}?" if close else f"it has {', '.join(known)}"
            raise ConfigError(f"{kind.__name__} has no field {name!r}; {hint}")


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's values, without what is None or empty."""
    found = {}
    for name, value in values.items():
        if value is None or (isinstance(value, tuple | Mapping) and not value):
            continue
        found[name] = (
            dict(value)
            if isinstance(value, Mapping)
            else list(value)
            if isinstance(value, tuple)
            else value
        )
    return found
