"""What waits together is done together, and each gets its own result."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from serve_cli.answer import Answer
from serve_cli.http.batch import MOST, Batch
from serve_cli.http.load import Load
from serve_cli.http.options import DEFAULTS
from serve_cli.http.reader import Job, Reader
from serve_cli.http.refusal import Refusal
from serve_cli.model_file import find_model
from serve_cli.picture import decode
from serve_cli.runtime import Predictor
from serve_cli.spec import BUNDLED_MODEL
from tests.serve_cli.http.serving import png
from trainer.data import Dataset


class Work:
    """Doubles numbers; an odd one is refused."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, jobs: Sequence[int]) -> list[int | Exception]:
        self.sizes.append(len(jobs))
        return [ValueError(job) if job % 2 else 2 * job for job in jobs]


async def together(batch: Batch[int, int], load: Load, number: int) -> list[int | BaseException]:
    async def one(job: int) -> int:
        load.begun += 1
        return await batch.run(job)

    load.arrived += number
    return await asyncio.gather(*(one(job) for job in range(number)), return_exceptions=True)


def test_what_waits_is_done_together() -> None:
    work, load = Work(), Load()
    results = asyncio.run(together(Batch(work, load), load, 2 * MOST))
    assert [result for result in results if isinstance(result, int)] == [2 * n for n in range(0, 2 * MOST, 2)]
    assert [str(r) for r in results if isinstance(r, ValueError)] == [str(n) for n in range(1, 2 * MOST, 2)]
    assert sum(work.sizes) == 2 * MOST
    assert max(work.sizes) == MOST
    assert load.waiting == 0


def test_what_comes_alone_is_done_at_once() -> None:
    work, load = Work(), Load()
    assert asyncio.run(together(Batch(work, load), load, 1)) == [0]
    assert work.sizes == [1]


def test_a_failure_of_all_reaches_each() -> None:
    def fail(jobs: Sequence[int]) -> list[int | Exception]:
        raise MemoryError

    load = Load()
    results = asyncio.run(together(Batch(fail, load), load, 5))
    assert [type(result) for result in results] == [MemoryError] * 5
    assert load.waiting == 0


def test_who_has_left_keeps_nobody_from_an_answer() -> None:
    work, load = Work(), Load()
    batch = Batch(work, load)

    async def leave() -> list[int | BaseException]:
        load.arrived += 3
        waiting = [asyncio.create_task(batch.run(job)) for job in (2, 4, 6)]
        await asyncio.sleep(0)  # all have asked, nothing is done yet
        waiting[1].cancel()
        return await asyncio.gather(*waiting, return_exceptions=True)

    first, left, last = asyncio.run(leave())
    assert (first, last) == (4, 12)
    assert isinstance(left, asyncio.CancelledError)
    assert load.queued == 0


def test_a_failure_of_ours_over_one_picture_is_that_ones(
    picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(data: bytes, name: str) -> np.ndarray:
        if data == b"bad":
            raise MemoryError
        return decode(data, name)

    monkeypatch.setattr("serve_cli.http.reader.decode", fail)
    reader = Reader(Predictor(find_model(BUNDLED_MODEL)), 0.5)
    bad, good = reader.read([Job(b"bad", "bad", DEFAULTS), Job(picture, "good", DEFAULTS)])
    assert isinstance(bad, MemoryError)
    assert isinstance(good, Answer)
    assert good.label == 7


def test_a_picture_has_the_same_answer_in_any_company(mnist5k: Dataset) -> None:
    reader = Reader(Predictor(find_model(BUNDLED_MODEL)), 0.5)
    images = mnist5k.test.images[:50].numpy()
    jobs = [Job(png(image), str(place), DEFAULTS) for place, image in enumerate(images)]
    jobs.insert(7, Job(b"no picture", "bad", DEFAULTS))
    results = reader.read(jobs)
    bad = results.pop(7)
    assert isinstance(bad, Refusal)
    del jobs[7]
    for job, result in zip(jobs, results, strict=True):
        assert isinstance(result, Answer)
        alone = reader.read_one(job)
        assert (alone.file, alone.probabilities) == (result.file, result.probabilities)
    assert np.mean([result.label is not None for result in results if isinstance(result, Answer)]) > 0.9


def test_a_refusal_is_raised(mnist5k: Dataset) -> None:
    reader = Reader(Predictor(find_model(BUNDLED_MODEL)), 0.5)
    with pytest.raises(Refusal, match="empty"):
        reader.read_one(Job(b"", "-", DEFAULTS))
