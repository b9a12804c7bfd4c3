"""Several processes that train together, where DistributedDataParallel does not do it: it does not see adapters that are swapped under it, nor rows that all must read alike."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
import torch.distributed

from data_prep.artifacts import process_count, process_rank

PATIENCE = datetime.timedelta(hours=6)         # what one process makes for all (`same`) may take longer than the ten minutes that are NCCL's


def leave() -> None:
    """Give up the group, at the end of a process that succeeded: gloo's threads, still there when Python ends, can abort it (pytorch#190489), and all it did would count as failed.
    Not after an error: NCCL would wait here for processes that wait elsewhere."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Group:
    """The processes that train together; one alone is a group too."""

    def __init__(self):
        self.size, self.rank = process_count(), process_rank()
        if self.size > 1 and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all processes."""
        total = torch.tensor(values, dtype=torch.float64, device="cuda" if self.size > 1 and torch.cuda.is_available() else "cpu")
        if self.size > 1:
            torch.distributed.all_reduce(total)
        return total.tolist()

    def same(self, make: Callable):
        """What the first process makes, in all of them: the others wait for it."""
        made = [make() if self.rank == 0 else None]
        if self.size > 1:
            torch.distributed.broadcast_object_list(made)
        return made[0]

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        if self.size > 1:
            flat = torch.cat([p.grad.flatten() for p in parameters])
            torch.distributed.all_reduce(flat)
            for parameter, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
                parameter.grad.copy_(grad.view_as(parameter))


def shared_dataset(rows: list[dict], folder: Path) -> datasets.Dataset:
    """The rows as a dataset on disk beside the checkpoints: what TRL caches of it, such as the reference's log-probs, is found there by all processes, and by a run that goes on."""
    place = folder / "checkpoints" / "rows"

    def write() -> None:
        if not (place / "state.json").is_file():          # written last
            datasets.Dataset.from_list(rows).save_to_disk(place)

    Group().same(write)
    return datasets.load_from_disk(place)
