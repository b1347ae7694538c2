"""The processes of a run: how they start, act together, and leave; devices are Accelerate's."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

from serve_cli.errors import InputError, MnistError
from serve_cli.process import LAUNCHED
from trainer.signals import die_with_parent

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others of its group: a download takes its time, a hang has no end."""

PROMISES = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Where launchers write how many processes they have started."""

HOW_TO_START = (
    "start them with mnist train --num-processes N, with torchrun --nproc-per-node N -m trainer.main, "
    "or with ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N -m trainer.main"
)


def start_processes() -> PartialState:
    """Join the group of processes that a launcher has made, or be alone.

    Raises:
        InputError: the environment speaks of more processes or devices than there are.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # else Accelerate sets it and warns; --threads decides
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not on_cpu and local > torch.accelerator.device_count():
        raise InputError(
            f"{local} processes were started on this machine, which has {torch.accelerator.device_count()} "
            "accelerator: start fewer, or set ACCELERATE_USE_CPU=true to train on the CPU"
        )
    if "LOCAL_RANK" in os.environ:
        die_with_parent()
    # Without cpu=True a launcher's processes on a machine with no accelerator would train alone, silently.
    try:
        state = PartialState(cpu=on_cpu, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"the processes of this run do not find each other ({reason}): {HOW_TO_START}"
        ) from error
    if state.num_processes == 1:
        _refuse_broken_promises()
    return state


def _refuse_broken_promises() -> None:
    """Refuse to train alone where the environment speaks of several processes.

    Raises:
        InputError: it does, and what to do.
    """
    for name in PROMISES:
        count = os.environ.get(name, "1")
        if count.isdigit() and int(count) > 1:
            raise InputError(f"{name} is {count}, but this process would train alone: {HOW_TO_START}")
    # What accelerate's launcher for one process leaves, and no launcher that starts a group.
    if {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
        raise InputError(f"accelerate was asked for several processes and started one: {HOW_TO_START}")


def in_first(action: Callable[[], T]) -> T:
    """Do `action` in the first process of the group and return what it returned, in all of them.

    Raises:
        MnistError: what `action` raised, in all processes; an OSError becomes one, too.
    """
    outcome: list[tuple[T | None, MnistError | None]] = [(None, None)]
    if PartialState().is_main_process:
        try:
            outcome = [(action(), None)]
        except MnistError as error:
            outcome = [(None, error)]
        except OSError as error:
            where = error.filename or "to the disk"
            outcome = [(None, MnistError(f"cannot write {where}: {error.strerror or error}"))]
    result, refused = broadcast_object_list(outcome)[0]
    if refused is not None:
        raise refused
    return cast(T, result)


def in_all(action: Callable[[], T]) -> T:
    """Do `action` in every process; what one of them refuses, all refuse.

    Raises:
        MnistError: what one of them raised, in all of them.
    """
    result: T | None = None
    refused: MnistError | None = None
    try:
        result = action()
    except MnistError as error:
        refused = error
    refusals = [error for error in gather_object([refused]) if error is not None]
    if refusals:
        raise refusals[0]
    return cast(T, result)


def one_a_machine_first(action: Callable[[], T]) -> T:
    """Do `action` in every process, on each machine first in one of them, while the others wait.

    Raises:
        MnistError: what one of them raised, in all of them.
    """
    is_first = PartialState().is_local_main_process
    early = in_all(lambda: action() if is_first else None)
    late = in_all(lambda: None if is_first else action())
    return cast(T, early if is_first else late)


def require_same(value: object, what: str) -> None:
    """Check that all processes have the same `value`.

    Raises:
        InputError: they do not; `what` says of what, and what to do. In all of them.
    """
    values = gather_object([value])
    others = [rank for rank, other in enumerate(values) if other != values[0]]
    if others:
        raise InputError(f"processes {', '.join(map(str, others))} differ from process 0 in {what}")


def leave_group() -> None:
    """Take the process group down in all processes at once: one that exits earlier can abort the others."""
    state = PartialState()
    with suppress(RuntimeError):  # another one is gone already: nothing is left to wait for
        state.wait_for_everyone()
        state.destroy_process_group()


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Train in `processes` processes on this machine with these flags; return the exit code of the training.

    The launcher is the one of torchrun; ours is only what it says.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The processes speak for themselves.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        run_id="mnist",
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", LAUNCHED, *arguments)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return next((code for code in codes if code > 0), 1)
    except SignalException as error:
        return 128 + error.sigval
    return 0
