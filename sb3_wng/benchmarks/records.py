"""Tidy CSV records that carry what is needed to repeat a measurement."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path

from filelock import FileLock

from sb3_wng.benchmarks.checkpoints import replace_file

RESULTS, WORK = Path("docs/benchmarks"), Path("runs/benchmarks")  # of CSV files and of checkpoints, unless told otherwise
PACKAGES = tuple("sb3-wng stable-baselines3 sb3-contrib rl-zoo3 torch numpy pot gymnasium pybullet mujoco loky ray".split())


def versions() -> str:
    """``name=version`` of Python and of every package that influences a measurement, separated by spaces."""
    installed = {dist.metadata["Name"].lower().replace("_", "-"): dist.version for dist in importlib.metadata.distributions()}
    found = [f"{name}={installed[name]}" for name in PACKAGES if name in installed]
    return " ".join([f"python={platform.python_version()}", *found])


def hardware() -> str:
    """The processor's name and the number of logical cores."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")  # where Linux keeps the name that platform does not know
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores"


def append_records(path: Path, records: Iterable[Mapping[str, object]], once: Iterable[str] = ()) -> bool:
    """Append rows to a CSV file; each gets the columns ``versions`` and ``hardware``.

    Any number of processes may append to one file. The file is replaced as a whole, so that a process that dies leaves no
    half-written row, and older rows get empty cells for columns that are new.

    :param once: columns that name a run: nothing is appended where the file has rows of one that is among the records
    :return: whether rows were appended
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    origin = {"versions": versions(), "hardware": hardware()}
    with FileLock(path.with_name(f".{path.name}.lock")):
        known, columns = read_records(path), tuple(once)
        new = [{**record, **origin} for record in records]
        keys = {tuple(str(record[column]) for column in columns) for record in new}
        if columns and any(tuple(row[column] for column in columns) in keys for row in known):
            return False
        write_records(path, [*known, *new])
        return True


def read_records(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_records(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Replace a CSV file, atomically; its columns are those of all rows, in order of appearance."""
    rows = list(rows)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path, text.getvalue().encode())
