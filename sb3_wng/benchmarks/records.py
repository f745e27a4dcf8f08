"""Tidy CSV records that carry what is needed to repeat a measurement."""

from __future__ import annotations

import csv
import importlib.metadata
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path

PACKAGES = ("sb3-wng", "stable-baselines3", "sb3-contrib", "torch", "gymnasium", "pybullet", "numpy")


def versions() -> str:
    """``name=version`` of Python and of every package that influences a measurement, separated by spaces."""
    installed = {dist.metadata["Name"].lower().replace("_", "-"): dist.version for dist in importlib.metadata.distributions()}
    found = [f"{name}={installed[name]}" for name in PACKAGES if name in installed]
    return " ".join([f"python={platform.python_version()}", *found])


def append_records(path: Path, records: Iterable[Mapping[str, object]]) -> None:
    """Append rows to a CSV file, writing the header if it is new; each row gets a ``versions`` column."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**record, "versions": versions()} for record in records]
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)
