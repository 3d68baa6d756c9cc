"""The ranks of a job, where they are those of torch.distributed."""

import torch
from torch import distributed


def are_distributed(world_size: int) -> bool:
    """Whether the default group of torch.distributed is up and has so many ranks."""
    is_up = distributed.is_available() and distributed.is_initialized()
    return is_up and distributed.get_world_size() == world_size


def wait_for_ranks(world_size: int) -> bool:
    """Wait for all ranks; False where they are not those of torch.distributed, so that nobody knows them."""
    if world_size == 1:
        return True
    if not are_distributed(world_size):
        return False
    distributed.barrier(device_ids=[torch.cuda.current_device()] if _is_on_gpu() else None)
    return True


def sum_over_ranks(number: int, world_size: int) -> int | None:
    """The sum of a number of each rank, all of which call this; None where they are not those of torch.distributed."""
    if world_size == 1:
        return number
    if not are_distributed(world_size):
        return None
    total = torch.tensor(number, device="cuda" if _is_on_gpu() else "cpu")
    distributed.all_reduce(total)
    return int(total)


def _is_on_gpu() -> bool:
    return distributed.get_backend() == "nccl"
