"""Several processes training one model: started by `torchrun`, averaged by the trainer.

torch's own launcher and process groups do the work; a wrapper such as DDP would train silently
unsynchronised, since systems are called through `updates` and not `forward`.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn


def start(device: torch.device) -> None:
    """Join the process group that the launcher's environment describes, if any."""
    if "RANK" in os.environ and "MASTER_ADDR" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is rank 0, also before the group is joined."""
    return int(os.environ.get("RANK", 0)) == 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def from_first(values: list[float]) -> list[float]:
    """Rank 0's numbers, on every rank."""
    if world() == 1:
        return values
    shared = torch.tensor(values, dtype=torch.float64, device=_device())
    dist.broadcast(shared, 0)
    return shared.tolist()


def same_everywhere(module: nn.Module) -> None:
    """Give every rank rank 0's parameters and buffers."""
    if world() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, 0)


def sum_flat(tensors: list[Tensor]) -> None:
    """Sum each tensor over the ranks, in place, by one all-reduce of all of them."""
    if world() == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
