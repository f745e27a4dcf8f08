"""Runs of a study in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from sb3_wng.benchmarks.checkpoints import only_one


class ProcessPool(ThreadPoolExecutor):
    """An executor of processes, each of which has one task after the other.

    A process that is killed fails the task that it had, and no other, which an executor of many processes would. All end at
    once where the block of ``with`` ends with an error (Ctrl-C, too), and when this process does, whatever ends it: left
    alone they would train on and write checkpoints.
    """

    def __init__(self, jobs: int) -> None:
        super().__init__(jobs)
        self._idle: list[ProcessPoolExecutor] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(self._run, function, *args, **kwargs)

    def _run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        process = self._idle.pop() if self._idle else _new_process()  # as many as there are threads
        future = process.submit(function, *args, **kwargs)
        if isinstance(future.exception(), BrokenProcessPool):
            process.shutdown()
        else:
            self._idle.append(process)
        return future.result()

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is not None:
            self.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.kill()
        super().__exit__(kind, *error)
        for idle in self._idle:
            idle.shutdown()


def _new_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # else Ctrl-C is an error of the task
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_pending(
    path: Path,
    jobs: int,
    pending: Callable[[], Iterable[tuple[Any, ...]]],
    train: Callable[..., Any],
    record: Callable[[tuple[Any, ...], Any], bool],
) -> bool:
    """Train what a results file lacks, and record each run as soon as it is finished; one that fails does not end the others.

    :param path: the file, held against other processes meanwhile
    :param pending: keys of the runs that it lacks, asked for once the file is held
    :param train: of a key, in a process of its own
    :param record: of a key and what ``train`` returned, in this process; whether the run is finished, and not paused
    :return: whether all are finished
    :raises RuntimeError: if another process holds the file
    """
    start, all_well = time.perf_counter(), True
    with only_one(path), ProcessPool(jobs) as pool:
        futures = {pool.submit(train, *key): key for key in dict.fromkeys(pending())}
        for count, future in enumerate(as_completed(futures), 1):
            key, error = futures[future], future.exception()
            if error is None:
                is_finished = record(key, future.result())
                rest = (len(futures) - count) * (time.perf_counter() - start) / count / 60
                print(f"{count}/{len(futures)}", *key, f"to finish: {rest:.0f} min" if is_finished else "paused", flush=True)
                all_well &= is_finished
            else:
                print("failed:", *key, repr(error), flush=True)
                all_well = False
    return all_well
