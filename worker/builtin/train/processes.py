"""Processes that train together, as torchrun starts them: which one this is, and what they agree on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True)
class Place:
    """Where this process stands among those that train together, and what it trains on."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def wait_for_all(self) -> None:
        if self.world_size > 1:
            distributed.barrier()

    def agreed(self, *wishes: bool) -> list[bool]:
        """For each wish: does any of the processes have it? They must stop and save after the same step."""
        if self.world_size == 1:
            return list(wishes)
        votes = torch.tensor(wishes, dtype=torch.int32, device=self.device)
        distributed.all_reduce(votes)
        return [bool(vote) for vote in votes]

    def all_at(self, step: int) -> bool:
        """Are all of the processes at this one's step?"""
        if self.world_size == 1:
            return True
        bounds = torch.tensor([step, -step], device=self.device)
        distributed.all_reduce(bounds, distributed.ReduceOp.MAX)
        return bounds.tolist() == [step, -step]

    def leave(self) -> None:
        if self.world_size > 1:
            distributed.destroy_process_group()


def find_place(device_name: str) -> Place:
    if not distributed.is_torchelastic_launched():
        return Place(torch.device(device_name))
    distributed.init_process_group("nccl" if device_name == "cuda" else "gloo")
    rank = distributed.get_rank()
    device = torch.device(device_name, rank) if device_name == "cuda" else torch.device(device_name)
    return Place(device, rank, distributed.get_world_size())
