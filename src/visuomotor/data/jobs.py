"""Jobs of a pool of threads that stand or fall together."""

from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, wait
from threading import Event
from typing import Any


def finish(pool: Executor, jobs: Sequence[Future[Any]], stopped: Event) -> None:
    """Waits for all jobs; where one fails, its error is raised.

    Args:
        pool: Runs these jobs and no others; it is shut down.
        jobs: All of them.
        stopped: Set at the end, and on an error or Ctrl-C: jobs that run look at it, and end too.
    """
    try:
        done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
        for job in done:
            job.result()
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
