"""Values of all batches between two pieces: in memory, and above a limit in files."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxprune.errors import CalibrationError


@dataclass(frozen=True)
class _Filed:
    """A tensor in a file.

    Attributes:
        file: holds its numbers, the axes in the order in which they lay in memory.
        dtype: of the tensor.
        shape: as it lies in the file.
        order: which axis of the tensor each of those is.
    """

    file: Path
    dtype: torch.dtype
    shape: torch.Size
    order: tuple[int, ...]


@dataclass(eq=False)
class Held:
    """Values by key. What does not fit into memory lies in a folder.

    Attributes:
        folder: for what is above the limit, see :func:`holding`.
        limit: bytes of tensors that stay in memory; None for all of them.
        used: bytes in memory.
        filed: bytes in files.
        peak: the most bytes that were held at one time, in memory and in files.
    """

    folder: Path
    limit: int | None = None
    used: int = 0
    filed: int = 0
    peak: int = 0
    _values: dict[Hashable, Any] = field(default_factory=dict)
    _count: int = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def put(self, key: Hashable, value: Any) -> None:
        """Hold a value; a tensor is moved to the CPU, and lies there as it lay before."""
        self.drop(key)
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            if value.untyped_storage().nbytes() > value.nbytes:
                value = value.clone()  # a part of something larger
            if self.limit is not None and value.numel() and self.used + value.nbytes > self.limit:
                value = self._file(value)
            else:
                self.used += value.nbytes
        self._values[key] = value
        self.peak = max(self.peak, self.used + self.filed)

    def get(self, key: Hashable) -> Any:
        """A value; not to be changed in place."""
        value = self._values[key]
        if not isinstance(value, _Filed):
            return value
        count = math.prod(value.shape) * value.dtype.itemsize
        flat = torch.from_file(str(value.file), shared=False, size=count, dtype=torch.uint8)
        back = [value.order.index(axis) for axis in range(len(value.order))]
        return flat.view(value.dtype).view(value.shape).permute(back)

    def drop(self, key: Hashable) -> None:
        """Forget a value, if there is one."""
        value = self._values.pop(key, None)
        if isinstance(value, _Filed):
            self.filed -= value.file.stat().st_size
            value.file.unlink()
        elif isinstance(value, Tensor):
            self.used -= value.nbytes

    def pop(self, key: Hashable, default: Any = None) -> Any:
        """A value that is not held any more."""
        if key not in self._values:
            return default
        value = self.get(key)
        if isinstance(self._values[key], _Filed):
            value = value.clone()  # the file goes
        self.drop(key)
        return value

    def _file(self, value: Tensor) -> _Filed:
        # Where axes lie otherwise, kernels may add up in another order.
        strides = value.stride()
        order = sorted(range(value.dim()), key=lambda axis: -strides[axis])
        flat = value.permute(order).contiguous()
        self._count += 1
        file = self.folder / f"{self._count}.bin"
        try:
            flat.flatten().view(torch.uint8).numpy().tofile(file)
        except OSError as error:
            raise CalibrationError(
                f"{self.folder} has no room for {flat.nbytes / 2**20:.0f} MiB of what goes from "
                f"piece to piece, after {self.filed / 2**20:.0f} MiB ({error}): take a larger "
                "disk (TMPDIR), give less calibration data, or let more stay in memory"
            ) from error
        self.filed += flat.nbytes
        return _Filed(file, value.dtype, flat.shape, tuple(order))


@contextlib.contextmanager
def holding(limit: int | None = None, within: Path | None = None) -> Iterator[Held]:
    """Hold values; files, if there are any, lie in a temporary folder that is removed.

    Args:
        limit: bytes of tensors that stay in memory; None for all of them.
        within: where that folder is; that for temporary files, if left out.
    """
    with tempfile.TemporaryDirectory(prefix=".fxprune-", dir=within) as folder:
        yield Held(Path(folder), limit)
