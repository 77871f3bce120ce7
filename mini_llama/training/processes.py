"""The processes that share a run, under torchrun or one alone, and the signals that stop it."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

import torch
import torch.distributed as dist

from mini_llama.tf32 import use_tf32
from utils import choose_device


@dataclass(frozen=True)
class Process:
    """This process among those that torchrun started, or alone."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def mean(self, value: torch.Tensor) -> float:
        """The mean of a number over all processes."""
        value = value.detach().clone()
        if self.world_size > 1:
            value = value.to(self.device)  # nccl exchanges nothing that is on the CPU
            dist.all_reduce(value)
        return value.item() / self.world_size


@contextlib.contextmanager
def join_processes(use_gpu: bool, tf32: bool = False) -> Iterator[Process]:
    """Join torchrun's group (nccl on CUDA, else gloo), if there is one, and leave it at the end.

    On CUDA float32 products are exact, or in TF32 (tf32.py).
    """
    device = choose_device(use_gpu)
    use_tf32(device, tf32)
    if "RANK" not in os.environ:
        yield Process(device=device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Process(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def end_process(status: int) -> NoReturn:
    """Exit with `status`; a process that torchrun started leaves the interpreter as it is.

    A thread of gloo that still holds a tensor while the interpreter is finalized aborts the process
    (PyTorch's pull request 179291), so these end as the children of multiprocessing do.
    """
    if "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


class StopRequest:
    """Remembers SIGTERM or SIGINT, so that a run can finish its step, save and exit."""

    def __init__(self) -> None:
        self.signal: int | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: object) -> None:
        if self.signal is not None:  # asked twice: do not wait for the step
            raise SystemExit(128 + number)
        self.signal = number

    def agreed(self, process: Process) -> bool:
        """Whether any process was asked to stop; all must call it, and get the same answer."""
        if process.world_size == 1:
            return self.signal is not None
        flag = torch.tensor(float(self.signal is not None), device=process.device)
        return process.mean(flag) > 0
