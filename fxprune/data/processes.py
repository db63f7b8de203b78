"""Calibration batches divided among the processes of a group, and the sums over all of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as dist

from fxprune.data.calibrate import Batch, part, rows, told_apart
from fxprune.errors import CalibrationError, ProcessError

T = TypeVar("T")
K = TypeVar("K")
_current: list[Processes] = []
_ERROR = "fxprune error"


@dataclass(frozen=True)
class Processes:
    """A group of processes that run the same program on a part of the data each.

    Every process calls the same methods in the same order, with values that differ in their
    numbers alone. What comes out is the same in all of them, to the last bit.

    Attributes:
        rank: the number of this one.
        count: how many there are.
    """

    rank: int
    count: int

    def device(self, name: str) -> str:
        """The device of this process: its own of several GPUs."""
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" else name

    def share(self, data: Sequence[Batch]) -> list[tuple[int, Batch]]:
        """This process's part of the data: rows of each batch that has as many, else rows in turn.

        Returns:
            The parts, each with the number of the batch that it is of.

        Raises:
            CalibrationError: there are fewer sequences than processes, or the processes have not
                the same data.
        """
        self._check_same(data)
        if sum(map(rows, data)) < self.count:
            raise CalibrationError(
                f"{sum(map(rows, data))} calibration sequences for {self.count} processes: give "
                "more, or start fewer"
            )
        found, turn = list[tuple[int, Batch]](), 0
        for number, batch in enumerate(data):
            size = rows(batch)
            if size >= self.count:
                start, stop = (size * each // self.count for each in (self.rank, self.rank + 1))
                found.append((number, part(batch, start, stop)))
                continue
            for row in range(size):
                if turn % self.count == self.rank:
                    found.append((number, batch if size == 1 else part(batch, row, row + 1)))
                turn += 1
        return found

    def gather(self, value: T) -> list[T]:
        """The value of every process, in the order of their ranks."""
        found: list[Any] = [None] * self.count
        self._run(dist.all_gather_object, found, value)
        return cast("list[T]", found)

    def first(self, value: T) -> T:
        """The value of the first process."""
        found = [value]
        self._run(dist.broadcast_object_list, found, src=0)
        return found[0]

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in its dtype; half precision is summed in float32."""
        wide = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
        self._run(dist.all_reduce, wide)
        return wide.to(tensor.dtype)

    def totals(self, found: Mapping[K, Tensor]) -> dict[K, Tensor]:
        """The sums of tensors by name; a process that lacks one adds nothing to it."""
        shapes: dict[K, tuple[Any, torch.dtype]] = {}
        for each in self.gather({n: (tuple(t.shape), t.dtype) for n, t in found.items()}):
            shapes |= each
        device = next((t.device for t in found.values()), torch.device("cpu"))
        return {
            name: self.total(
                found[name] if name in found else torch.zeros(shape, dtype=dtype, device=device)
            )
            for name, (shape, dtype) in sorted(shapes.items(), key=lambda each: str(each[0]))
        }

    def _check_same(self, data: Sequence[Batch]) -> None:
        if len(set(self.gather(told_apart(data)))) > 1:
            raise CalibrationError(
                "the processes were given different calibration data: give each all of it, in one "
                "order"
            )

    def _run(self, collective: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        try:
            collective(*args, **kwargs)
        except RuntimeError as error:  # gloo and nccl say in many ways that a peer is gone
            raise ProcessError(
                f"process {self.rank} of {self.count} waits for another that has ended: its own "
                "message says why"
            ) from error


def launched() -> int:
    """How many processes a launcher has started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def current() -> Processes | None:
    """The group that data is divided among, if there is one."""
    return _current[-1] if _current else None


@contextlib.contextmanager
def divided(device: str | torch.device = "cpu") -> Iterator[Processes | None]:
    """Divide calibration data among the processes that a launcher started, until the block ends.

    Within it :func:`fxprune.estimate` and :func:`fxprune.compensate` (and so :func:`fxprune.prune`)
    run a part of the data in each process, and sum what they find. All processes come to the same
    scores, plan and weights, and only one of them has to save these.

    Args:
        device: where the models are: ``gloo`` connects processes on CPUs, ``nccl`` on GPUs. A group
            that exists is used as it is.

    Yields:
        The group; None where there is one process.

    Raises:
        ProcessError: the processes cannot be connected.
    """
    made = not dist.is_initialized() if dist.is_available() else False
    many = launched() > 1 if made else dist.is_available()
    if not many:
        yield None
        return
    kind = torch.device(device).type
    if made:
        try:
            if kind == "cuda":
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            dist.init_process_group("nccl" if kind == "cuda" else "gloo")
        except (RuntimeError, ValueError) as error:
            raise ProcessError(f"the processes cannot be connected: {error}") from error
    _current.append(Processes(dist.get_rank(), dist.get_world_size()))
    try:
        yield _current[-1]
    finally:
        _current.pop()
        if made:
            dist.destroy_process_group()


def told(message: str) -> bool:
    """Whether the first process ends with the same message, so that another need not say it.

    Args:
        message: why this process ends.
    """
    address, rank = os.environ.get("MASTER_ADDR"), int(os.environ.get("RANK", "0"))
    if address is None or launched() < 2:
        return False
    try:
        port, wait = int(os.environ["MASTER_PORT"]), timedelta(seconds=3)
        store = dist.TCPStore(address, port, is_master=False, timeout=wait)
        if rank:
            store.wait([_ERROR], wait)
            return bool(store.get(_ERROR) == message.encode())
        store.set(_ERROR, message)
    except (RuntimeError, ValueError, KeyError):  # no such store, or nothing in it
        pass
    return False
