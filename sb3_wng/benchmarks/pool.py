"""Runs of a study in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from sb3_wng.benchmarks.checkpoints import only_one


def make_pool(jobs: int) -> ProcessPoolExecutor:
    """Processes that end with this one, whatever ends it: left alone they would train on and write checkpoints."""
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
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
    with only_one(path), make_pool(jobs) as pool:
        futures = {pool.submit(train, *key): key for key in pending()}
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
