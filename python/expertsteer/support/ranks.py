"""Processes that work on one task, as `torchrun` starts them; a single one is the usual case."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")
# A process that dies ends the others through torchrun; one that is slow is waited for.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process among all.

    Attributes:
        rank: counted from 0; size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """Those of the process group, if one was started."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls()

    def share(self, items: Sequence[T]) -> list[T]:
        """Every ``size``-th item: disjoint over the ranks, and all items together."""
        return list(items)[self.rank :: self.size]

    def first(self, work: Callable[[], T]) -> T:
        """What rank 0 makes, on every rank; an error that it meets is raised on every rank.

        On all ranks but the first the error is marked ``shown_elsewhere``.
        """
        if self.size == 1:
            return work()
        result: Any = None
        if self.rank == 0:
            try:
                result = work(), None
            except (ValueError, OSError) as error:
                result = None, error
        box = [result]
        with _talking():
            distributed.broadcast_object_list(box, src=0)
        value, error = box[0]
        if error is not None:
            error.shown_elsewhere = self.rank != 0
            raise error
        return value

    def gather(self, value: T) -> list[T]:
        """The values of all ranks in their order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _talking():
            distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            with _talking():
                distributed.barrier()


@contextmanager
def _talking() -> Iterator[None]:
    """A process that ends with an error of its own breaks the connections of the others."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            "another process of this run ended, its own message says why; what was written stays, "
            "and the same command goes on from there"
        ) from error


@contextmanager
def ranks_of_torchrun() -> Iterator[Ranks]:
    """The ranks that `torchrun` started, as a process group while the context lasts.

    On GPUs every process takes the one of its local rank.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or Ranks.here().size > 1:
        yield Ranks.here()
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Ranks.here()
    finally:
        distributed.destroy_process_group()
