"""Run in one process, or in many that torchrun starts, each with its part of every batch."""

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

TIMEOUT = timedelta(hours=12)  # the other processes wait while the main one fills the caches


@dataclass(frozen=True, slots=True)
class Process:
    """This process: its rank among `world` processes, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Tell whether this process is the one that validates, prints and writes."""
        return self.rank == 0

    def wrap_ddp(self, task: nn.Module) -> nn.Module:
        """Average the task's gradients over all processes; with one process, return it as it is."""
        if self.world == 1:
            return task
        # On GPUs batch statistics are those of the whole batch. gloo cannot do that on the CPU: each
        # process keeps those of its own part, and the main one's are saved.
        if self.device.type == "cuda":
            task = nn.SyncBatchNorm.convert_sync_batchnorm(task)  # type: ignore[no-untyped-call]
            devices = [self.device.index]
            return DistributedDataParallel(task, devices, find_unused_parameters=True)
        # An ablation, or a loss of weight 0, leaves parameters without a gradient.
        return DistributedDataParallel(task, find_unused_parameters=True)

    def mean(self, value: float) -> float:
        """Average a number over all processes."""
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return float(total) / self.world

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            distributed.barrier()


def unwrap(task: nn.Module) -> nn.Module:
    """Return what `Process.wrap_ddp` was given."""
    return cast(nn.Module, task.module) if isinstance(task, DistributedDataParallel) else task


@contextmanager
def process_group() -> Iterator[Process]:
    """Join the processes that torchrun started; without torchrun there is one."""
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if world > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield Process(rank, world, device)
    finally:
        if world > 1:
            distributed.destroy_process_group()
