"""The processes of a run: how they start, act together, stop together and end. Accelerate has the devices."""

import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import FrameType
from typing import TypeVar, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

from serve_cli.errors import InputError, MnistError
from serve_cli.process import warn
from trainer.config import PROGRAM

T = TypeVar("T")

MODULE = "trainer.main"
"""What launchers start."""

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others of its group: a download takes its time, a hang has no end."""

WORLD_SIZES = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Where launchers write how many processes they have started."""

HOW_TO_START = (
    "start them with mnist train --num-processes N, with torchrun --nproc-per-node N -m trainer.main, "
    "or with ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N -m trainer.main"
)

HONOURED = {
    *("ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_CPU_AFFINITY", "ACCELERATE_DEBUG_MODE"),
    *("ACCELERATE_TORCH_DEVICE", "ACCELERATE_LOG_LEVEL"),
}
WHOLE_NET = "each device holds the whole net: start without"
UNSUPPORTED = {
    "ACCELERATE_USE_FSDP": f"{WHOLE_NET} FSDP, with --multi_gpu",
    "ACCELERATE_USE_DEEPSPEED": f"{WHOLE_NET} DeepSpeed, with --multi_gpu",
    "ACCELERATE_USE_MEGATRON_LM": f"{WHOLE_NET} Megatron-LM, with --multi_gpu",
    "ACCELERATE_USE_PARALLELISM_CONFIG": f"{WHOLE_NET} other parallelism, with --multi_gpu",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "set --batch-size to the images of one optimizer step, and "
    "--accumulate to the parts that a process computes its share in",
    "ACCELERATE_DYNAMO_BACKEND": "compiling takes longer than training here: leave it out",
}
"""Settings of accelerate launch that this program does not have, and what to do instead."""

NEUTRAL = ("", "no", "false", "0", "default")
"""Values with which a setting changes nothing."""


class LostProcess(MnistError):
    """Another process of the group is gone or failed. All that are left report it: it may be the main one."""

    on_main_process_only = False


class Stopped(MnistError):
    """A signal asked the run to stop; the exit code is the one that shells give."""

    def __init__(self, number: signal.Signals, step: int) -> None:
        super().__init__(f"stopped by {number.name} after step {step}")
        self.exit_code = 128 + number


def join_processes() -> PartialState:
    """Join the group of processes that a launcher has made, or train alone.

    Raises:
        InputError: the environment names more processes or devices than there are, or a setting of accelerate
            that this program does not have.
    """
    _refuse_unsupported_settings()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # else Accelerate sets it and warns; --threads decides
    try:
        on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    except ValueError as error:
        raise InputError(
            f"ACCELERATE_USE_CPU or LOCAL_WORLD_SIZE is wrong ({error}): leave it out"
        ) from error
    if not on_cpu and local > torch.accelerator.device_count():
        raise InputError(
            f"{local} processes were started on this machine, which has {torch.accelerator.device_count()} "
            "accelerator: start fewer, or set ACCELERATE_USE_CPU=true to train on the CPU"
        )
    if "LOCAL_RANK" in os.environ:
        _die_with_parent()
    # Without cpu=True a launcher's processes on a machine with no accelerator would train alone, silently.
    try:
        state = PartialState(cpu=on_cpu, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"the processes of this run do not find each other ({reason}): {HOW_TO_START}"
        ) from error
    if state.num_processes == 1:
        _refuse_missing_processes()
    return state


def _refuse_unsupported_settings() -> None:
    settings = {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")}
    for name in [*UNSUPPORTED, *settings]:
        value = settings.get(name, "")
        is_one = name == "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" and value == "1"
        if name not in HONOURED and value.lower() not in NEUTRAL and not is_one:
            advice = UNSUPPORTED.get(name, "leave it out")
            raise InputError(f"{name} is {value}, which this program does not support: {advice}")


def _refuse_missing_processes() -> None:
    """Refuse to train alone where the environment names several processes.

    Raises:
        InputError: it does, and what to do.
    """
    for name in WORLD_SIZES:
        count = os.environ.get(name, "1")
        if count.isdigit() and int(count) > 1:
            raise InputError(f"{name} is {count}, but this process would train alone: {HOW_TO_START}")
    # What accelerate's launcher for one process leaves, and no launcher that starts a group.
    if {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
        raise InputError(f"accelerate was asked for several processes and started one: {HOW_TO_START}")


def on_all_processes(action: Callable[[], T]) -> T:
    """Call `action` in every process; an error in one of them ends all.

    Raises:
        MnistError: what the first failing process raised, in all of them. An exception of another class is
            raised as it is where it occurred.
    """
    result, error = _attempt(action)
    failures = [failure for failure in gather_object([_sendable(error)]) if failure is not None]
    _raise(error, failures[0] if failures else None)
    return cast(T, result)


def on_main_process(action: Callable[[], T]) -> T:
    """Call `action` in the main process and return its result in all of them.

    Raises:
        MnistError: what `action` raised, in all processes; an OSError becomes one, too.
    """
    result, error = _attempt(action) if PartialState().is_main_process else (None, None)
    result, failure = broadcast_object_list([(result, _sendable(error))])[0]
    _raise(error, failure)
    return cast(T, result)


def _attempt(action: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return action(), None
    except OSError as error:
        return None, MnistError(f"cannot write {error.filename or 'to the disk'}: {error.strerror or error}")
    except Exception as error:  # the other processes wait for an outcome, whatever it is
        return None, error


def _sendable(error: Exception | None) -> MnistError | None:
    """`error` as the other processes get it."""
    if error is None or isinstance(error, MnistError):
        return error
    return LostProcess(f"process {PartialState().process_index} failed ({type(error).__name__}: {error})")


def _raise(own: Exception | None, shared: MnistError | None) -> None:
    """Raise the error of this process as it is, or the one that all processes share."""
    if own is not None and not isinstance(own, MnistError):
        raise own
    if shared is not None:
        raise shared


def local_main_process_first(action: Callable[[], T]) -> T:
    """Call `action` in every process, on each machine first in one of them while the others wait.

    Raises:
        MnistError: what one of them raised, in all of them.
    """
    is_first = PartialState().is_local_main_process
    early = on_all_processes(lambda: action() if is_first else None)
    late = on_all_processes(lambda: None if is_first else action())
    return cast(T, early if is_first else late)


def require_same(value: object, what: str) -> None:
    """Check that all processes have the same `value`.

    Raises:
        InputError: they do not; `what` names it and says what to do. In all of them.
    """
    values = gather_object([value])
    others = [rank for rank, other in enumerate(values) if other != values[0]]
    if others:
        raise InputError(f"processes {', '.join(map(str, others))} differ from process 0 in {what}")


def sync_stop(
    accelerator: Accelerator, diverged: bool, received: signal.Signals | None
) -> tuple[bool, signal.Signals | None]:
    """Whether the loss of any process diverged, and a signal that any of them received: in all processes."""
    if diverged or received:
        accelerator.set_trigger()
    if not accelerator.check_trigger():
        return False, None
    found = gather_object([(diverged, received)])
    return any(each for each, _ in found), next((number for _, number in found if number), None)


class StopSignal:
    """In this context the first SIGINT or SIGTERM is noted in `received`; the second one acts at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopSignal":
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def leave_group() -> None:
    """Take the process group down in all processes at once: one that exits earlier can abort the others."""
    state = PartialState()
    with contextlib.suppress(RuntimeError):  # another one is gone already: nothing is left to wait for
        state.wait_for_everyone()
        state.destroy_process_group()


def lost_process(error: Exception) -> LostProcess | None:
    """`error` as a LostProcess if it says that another process of the group is gone."""
    reason = next(iter(str(error).splitlines()), "")
    is_network = isinstance(error, torch.distributed.DistError) or any(
        sign in reason for sign in ("Connection closed", "Connection reset", "gloo", "NCCL")
    )
    if PartialState().num_processes == 1 or not is_network:
        return None
    return LostProcess(
        f"process {PartialState().process_index} lost another process of this run ({reason}): "
        "find out why that one ended, then start all of them again with --resume"
    )


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Train in `processes` processes on this machine with torchrun's launcher; return their exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes report errors
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="mnist",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", MODULE, *arguments)
    except ChildFailedError as error:
        failures = sorted(error.failures.items())
        launchers = -signal.SIGTERM if any(failure.exitcode > 0 for _, failure in failures) else 0
        for rank, failure in failures:
            if (
                failure.exitcode < 0 and failure.exitcode != launchers
            ):  # which ends the others of a failed group
                name = signal.Signals(-failure.exitcode).name
                warn(PROGRAM, f"process {rank} of {processes} was ended by {name}: start again with --resume")
        return next((failure.exitcode for _, failure in failures if failure.exitcode > 0), 1)
    except SignalException as error:
        return 128 + error.sigval
    return 0


def _die_with_parent() -> None:
    """Have the kernel kill this process when the launcher that started it dies; on Linux only."""
    pr_set_pdeathsig = 1  # from Linux's sys/prctl.h
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
