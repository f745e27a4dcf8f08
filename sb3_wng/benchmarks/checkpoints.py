"""What an interrupted run needs to go on, written so that no crash leaves half of it."""

from __future__ import annotations

import io
import os
import pickle
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from stable_baselines3.common.base_class import BaseAlgorithm


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that readers, and processes after a crash, see either the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)


def write_checkpoint(path: Path, made_by: str, state: Any) -> None:
    """Write what a run needs to go on.

    :param made_by: who runs, and with which settings
    """
    replace_file(path, pickle.dumps((made_by, state)))


def read_checkpoint(path: Path, made_by: str) -> Any:
    """What :func:`write_checkpoint` wrote.

    :raises ValueError: for a checkpoint of another run, or of other settings
    """
    found, state = pickle.loads(path.read_bytes())
    if found != made_by:
        raise ValueError(f"{path} was made by {found}, and not by {made_by}: delete it to begin anew")
    return state


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold a results file for a study.

    :raises RuntimeError: if another process does
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.with_name(f".{path.name}.study.lock"), timeout=0):
            yield
    except Timeout:
        raise RuntimeError(
            f"another process is writing {path}: wait for it (--jobs runs side by side), or pass --output"
        ) from None


def file_name(*parts: object) -> str:
    """A name for what these parts identify, that any file system takes."""
    return "-".join(re.sub(r"[^\w.]+", "_", str(part)) for part in parts)


def saved(model: BaseAlgorithm) -> bytes:
    """What ``model.save`` writes."""
    buffer = io.BytesIO()
    model.save(buffer)
    return buffer.getvalue()


def generator_states() -> tuple[Any, ...]:
    """Where the global random generators stand: Python's, NumPy's (which SB3 uses) and torch's."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002


def set_generator_states(states: tuple[Any, ...]) -> None:
    """Put them back; after loading a model, which seeds them."""
    python, numpy, torch_state = states
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    torch.set_rng_state(torch_state)
