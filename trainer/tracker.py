"""Curves for TensorBoard, through Accelerate's tracker; metrics.jsonl is there without it."""

from accelerate import Accelerator

from serve_cli.errors import needs_extra
from trainer.config import TrainConfig
from trainer.loop import Course, Epoch
from trainer.run_dir import TENSORBOARD


def require_tracker(tracker: str | None) -> None:
    """Check that the packages of `tracker` are there before a run relies on them.

    Raises:
        MissingExtra: they are not installed.
    """
    if tracker is not None:
        with needs_extra(tracker):
            __import__("tensorboard")


def start_tracker(accelerator: Accelerator, config: TrainConfig, step: int) -> None:
    """Open the tracker that `accelerator` was made with; what it holds from `step` on is replaced."""
    settings = {
        name: value if isinstance(value, (int, float, str, bool)) else str(value)
        for name, value in config.to_dict().items()
    }
    accelerator.init_trackers(TENSORBOARD, settings, {"tensorboard": {"purge_step": step}})


def track(accelerator: Accelerator, epoch: Epoch, course: Course, samples: int, batch_size: int) -> None:
    """Log what an epoch over `samples` images left, and the mean loss of each of its steps."""
    if not accelerator.trackers:
        return
    steps = len(course.losses)
    for position, loss in enumerate(course.losses.tolist()):
        size = min(batch_size, samples - position * batch_size)
        accelerator.log({"train/step_loss": loss / size}, step=epoch.step - steps + position + 1)
    accelerator.log(
        {
            "train/loss": epoch.train_loss,
            "train/learning_rate": epoch.learning_rate,
            "train/images_per_second": samples / epoch.seconds,
            "validation/loss": epoch.validation.loss,
            "validation/accuracy": epoch.validation.accuracy,
        },
        step=epoch.step,
    )


def close_tracker(accelerator: Accelerator) -> None:
    """Flush what was logged; Accelerate's own end_training would take the process group down as well."""
    for tracker in accelerator.trackers:
        tracker.finish()
