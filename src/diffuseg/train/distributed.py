"""The processes of a training: one, or under torchrun several that see different batches and share every gradient."""

import atexit
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diffuseg.device import choose_device
from diffuseg.errors import UserError


@dataclass(frozen=True)
class Processes:
    """This process among all of a training: its device, its rank, and their number."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """The value that the first process has."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def broadcast_weights(self, module: nn.Module) -> None:
        """Give the module of every process the weights and buffers of the first one."""
        if self.world_size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over the processes."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
            tensor /= self.world_size
        return tensor

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier()


def join_processes(device: str | None) -> Processes:
    """The only process, or one of those that torchrun started: NCCL between GPUs, gloo between processors.

    Raises:
        UserError: the device does not exist, or several processes cannot share it.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    chosen = choose_device(device)
    if world_size == 1:
        return Processes(torch.device("cuda", chosen.index or 0) if chosen.type == "cuda" else chosen)
    if chosen.type == "cuda":
        chosen = choose_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(chosen)
    if chosen.type == "mps":
        raise UserError("several processes cannot share Apple's GPU", do="Give --device cpu, or train in one process")
    if not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return Processes(chosen, dist.get_rank(), world_size)
