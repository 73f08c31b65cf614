"""Runs many jobs at once, a bounded number at a time, and hands each result on as it comes.

Knows nothing of what the jobs are.
"""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_flight(
    jobs: Sequence[Job],
    run: Callable[[Job], Result],
    most: int,
    stopping: threading.Event,
    goes_on: Callable[[Exception], bool],
) -> Iterator[tuple[Job, Result | Exception]]:
    """Yields each job with its result, or with the error that it raised.

    Args:
        jobs: What there is to do.
        run: Does one job.
        most: The most jobs at once.
        stopping: Set when no more jobs are to begin; set here when the caller stops reading.
        goes_on: Whether other jobs are still worth beginning after an error. Where they are not, the jobs at work are
            told to end, and the rest is not yielded.
    """
    waiting = iter(jobs)
    pool = ThreadPoolExecutor(most, "ptuning-vllm")
    try:
        pending = {pool.submit(run, each): each for each in itertools.islice(waiting, most)}
        while pending:
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            ended = [(pending.pop(future), _result(future)) for future in done]
            if not all(goes_on(result) for _, result in ended if isinstance(result, Exception)):
                stopping.set()
            if not stopping.is_set():
                pending |= {pool.submit(run, each): each for each in itertools.islice(waiting, len(done))}
            yield from ended
    finally:
        stopping.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _result(future: Future[Any]) -> Any:
    error = future.exception()
    if isinstance(error, Exception):
        return error
    return future.result()
