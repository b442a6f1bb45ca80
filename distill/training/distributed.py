"""One process or many: started by torchrun, each takes its part of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

CACHING = timedelta(hours=12)


@dataclass(frozen=True, slots=True)
class Process:
    """rank of world processes, and the device that is its own."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """The one that validates, prints and writes."""
        return self.rank == 0

    def spread(self, task: nn.Module) -> nn.Module:
        """The task with gradients averaged over all processes; itself where there is one."""
        if self.world == 1:
            return task
        # On GPUs batch statistics are the whole batch's; gloo has no such kernel for the CPU, where
        # each process keeps its own part's and the first one's are those that are saved.
        if self.device.type == "cuda":
            task = nn.SyncBatchNorm.convert_sync_batchnorm(task)
            devices = [self.device.index]
            return DistributedDataParallel(task, devices, find_unused_parameters=True)
        # An ablation or a lesson of weight 0 leaves parameters without a gradient.
        return DistributedDataParallel(task, find_unused_parameters=True)

    def mean(self, value: float) -> float:
        """Of a figure, over all processes."""
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return float(total) / self.world

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            distributed.barrier()


def own_module(spread: nn.Module) -> nn.Module:
    """What `Process.spread` was given."""
    if isinstance(spread, DistributedDataParallel):
        return cast(nn.Module, spread.module)
    return spread


@contextmanager
def join() -> Iterator[Process]:
    """This process among those that torchrun started; alone without torchrun."""
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if world > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        # The others wait while the first one fills the caches.
        distributed.init_process_group(backend, timeout=CACHING)
    try:
        yield Process(rank, world, device)
    finally:
        if world > 1:
            distributed.destroy_process_group()
