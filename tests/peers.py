"""
Run the peers' own tests on the classes of this package.

A drop-in replacement should pass the tests written for the class it replaces. This script fetches
the source distributions of the installed versions of stable-baselines3 and sb3-contrib, which
contain their tests, and runs the tests that use ``A2C`` (in stable-baselines3) or ``TRPO`` (in
sb3-contrib; ``ARS`` for evolution strategies) with that class swapped for one of ours. The test
files are used as they are: the swap happens in the peer's namespace, before the tests import the
name from there.

    python tests/peers.py --algo wnpg
    python tests/peers.py --algo es --peer contrib
    python tests/peers.py --algo trpo  # the control: TRPO in the place of A2C and of itself

The same file is the pytest plugin that does the swap and the selection in the process that runs
the tests. It is not collected by pytest, because its name does not start with ``test_``.
"""

import argparse
import dis
import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from stable_baselines3.common.base_class import BaseAlgorithm

HERE = Path(__file__).resolve().parent

# name on the command line -> (package, class)
ALGOS = {
    "wnpg": ("sb3_wng", "WNPG"),
    "npg": ("sb3_wng", "NPG"),
    "pg": ("sb3_wng", "PG"),
    "bgpg": ("sb3_wng", "BGPG"),
    "bgwnpg": ("sb3_wng", "BGWNPG"),
    "trpo": ("sb3_contrib", "TRPO"),
    "ars": ("sb3_contrib", "ARS"),
}
STRATEGIES = {"es": "ES", "wnes": "WNES", "bges": "BGES", "bgwnes": "BGWNES", "nsres": "NSRES"}
ALGOS.update({name: ("sb3_wng", attribute) for name, attribute in STRATEGIES.items()})


@dataclass(frozen=True)
class Peer:
    """A package whose tests are run, and the class of it that is swapped."""

    distribution: str
    package: str
    swapped: str


PEERS = {
    "contrib": Peer("sb3-contrib", "sb3_contrib", "TRPO"),
    "sb3": Peer("stable-baselines3", "stable_baselines3", "A2C"),
}


def swapped_class(key: str, algo: str) -> str:
    """The name of the class of a peer that one of ours takes the place of."""
    return "ARS" if key == "contrib" and algo in {*STRATEGIES, "ars"} else PEERS[key].swapped


# Tests that a class is not meant to pass: (peer, class or "any") -> test -> reason. TRPO fails those of "any", too.
# A test is named with its parameters where only some of them are excluded.
EXCLUDED = {
    ("sb3", "any"): {
        "test_callbacks.py::test_callbacks_can_cancel_runs": "sets n_steps=1, where the advantages cannot be normalized",
        "test_gae.py::test_infinite_horizon": "500 steps are 100 updates with A2C's n_steps=5, here one",
        "test_identity.py::test_continuous": "2000 steps are 400 updates with A2C's n_steps=5, here one or two",
        "test_tensorboard.py::test_tensorboard": "expects a log folder with the name A2C_1",
    },
    ("sb3", "bgwnpg"): {
        "test_identity.py::test_discrete[env2-BGWNPG]": "a few updates instead of hundreds; MultiBinary ends at 87, not 90",
    },
    ("contrib", "npg"): {
        "test_identity.py::test_discrete": "1500 steps are two updates; with its one seed MultiBinary ends at 87, not 90",
    },
    **{
        ("contrib", algo): {
            "test_cnn.py::test_cnn": "sets cg_max_steps, and the plain gradient has no linear system to solve",
            "test_run.py::test_trpo_params": "sets sub_sampling_factor, and the plain gradient has no metric to estimate",
        }
        for algo in ("pg", "bgpg")
    },
    **{
        ("contrib", algo): {
            "test_deterministic.py::test_deterministic_training_common[ars_multi]": "gives learn(async_eval=), here n_jobs",
            "test_run.py::test_ars_multi_env": "gives learn(async_eval=), here n_jobs",
            "test_run.py::test_ars_n_top": "sets n_top, which only ARS selects candidates by",
        }
        for algo in STRATEGIES
    },
}

# Tests that fail, rather than skip themselves, without an optional package: id -> package
NEEDS = {"test_logger.py::test_set_logger": "tensorboard"}

# The markers that the peers use
PYTEST_INI = """[pytest]
markers =
    expensive: in stable-baselines3
    slow: in sb3-contrib
"""


class Unavailable(RuntimeError):
    """The tests of a peer could not be downloaded."""


@dataclass(frozen=True)
class Case:
    """The outcome of one test: ``passed``, ``failed`` or ``skipped``, and the message that goes with it."""

    name: str
    outcome: str
    message: str = ""


@dataclass(frozen=True)
class Report:
    """The outcomes of the tests of one peer, with one class."""

    peer: str
    algo: str
    cases: list[Case]
    seconds: float
    output: str

    def of(self, outcome: str) -> list[Case]:
        """The tests that ``passed``, ``failed`` or were ``skipped``."""
        return [case for case in self.cases if case.outcome == outcome]

    def __str__(self) -> str:
        counts = ", ".join(f"{len(self.of(outcome))} {outcome}" for outcome in ("passed", "failed", "skipped"))
        return f"{self.algo} in {PEERS[self.peer].distribution}: {counts} in {self.seconds:.0f} s"


# --- getting the tests ---------------------------------------------------------------------------


def default_cache() -> Path:
    """The folder where the downloaded source distributions are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "sb3_wng" / "peers"


def download(peer: Peer, cache: Path) -> Path:
    """
    Download the source distribution of the installed version of a peer, unless it is there already.

    :param peer: The peer
    :param cache: The folder for the download
    :return: The path of the archive
    """
    version = importlib.metadata.version(peer.distribution)
    # PEP 625 writes the name of the archive with underscores, older build tools kept the hyphen
    names = [f"{name}-{version}.tar.gz" for name in (peer.package, peer.distribution)]
    if not any((cache / name).exists() for name in names):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-binary", ":all:", "--no-deps", "--no-build-isolation", "--retries", "1"]
        done = subprocess.run(
            [*command, "--dest", str(cache), f"{peer.distribution}=={version}"], capture_output=True, text=True
        )
        if done.returncode != 0:
            reason = (done.stderr.strip() or "pip gave no reason").splitlines()[-1]
            raise Unavailable(f"cannot download the sdist of {peer.distribution} {version}: {reason}")
    return next(cache / name for name in names if (cache / name).exists())


def unpack_tests(archive: Path, target: Path) -> Path:
    """Unpack the tests of a source distribution into a folder; return where they are."""
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if Path(member.name).parts[1:2] == ("tests",)]
        tar.extractall(target, members=members, filter="data")
    return next(target.glob("*/tests"))


# --- running the tests ---------------------------------------------------------------------------


def child_environment() -> dict[str, str]:
    """The environment of the process that runs the tests: this import path, no setting of a running pytest."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    # The last entry finds the package of this repository where it is not installed
    paths = [str(HERE), *(path for path in sys.path if path), str(HERE.parent)]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


def run_pytest(key: str, algo: str, tests: Path, files: Sequence[str], options: Sequence[str]) -> Report:
    """
    Run the tests of one peer in a process of their own.

    :param key: The key of the peer in ``PEERS``
    :param algo: The key of the class in ``ALGOS``
    :param tests: The folder with a copy of the tests, where the process runs
    :param files: The test files to run, all of them if empty
    :param options: Further options for pytest
    :return: The outcomes
    """
    # A configuration next to the tests keeps that of any folder above from being used
    (tests / "pytest.ini").write_text(PYTEST_INI)
    # A test file imports this for the Atari tests in it, none of which uses the swapped class
    if importlib.util.find_spec("ale_py") is None:
        (tests / "ale_py.py").touch()
    command = [sys.executable, "-m", "pytest", "-q", "-rfEs", "--tb=short", "-p", "peers", "-p", "no:cacheprovider"]
    command += ["--swap-peer", key, "--swap-algo", algo, "--junitxml", "report.xml", *options]
    # Not every peer has every file
    wanted = [name for name in files if (tests / name).exists()]
    if files and not wanted:
        return Report(key, algo, [], 0.0, "none of the files is there")
    command += wanted
    start = time.monotonic()
    done = subprocess.run(
        command, cwd=tests, env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    seconds = time.monotonic() - start
    # 1 stands for failed tests; the codes above it for a run that broke off or found nothing to run
    if done.returncode > 1:
        raise RuntimeError(f"pytest ended with code {done.returncode}:\n{done.stdout}")
    return Report(key, algo, list(read_junit(tests / "report.xml")), seconds, done.stdout)


def read_junit(path: Path) -> Iterator[Case]:
    """The outcomes in the report that pytest wrote."""
    for element in ET.parse(path).iter("testcase"):
        name = f"{element.get('classname')}.py::{element.get('name')}"
        outcome, message = "passed", ""
        for child in element:
            if child.tag in ("failure", "error", "skipped"):
                outcome = "skipped" if child.tag == "skipped" else "failed"
                message = child.get("message", "")
        yield Case(name, outcome, message)


def run_peer(
    key: str,
    algo: str,
    files: Sequence[str] = (),
    tests: Path | None = None,
    cache: Path | None = None,
    options: Sequence[str] = (),
) -> Report:
    """
    Get the tests of one peer and run those that use the swapped class.

    :param key: The key of the peer in ``PEERS``
    :param algo: The key of the class in ``ALGOS``
    :param files: The test files to run, all of them if empty
    :param tests: The folder with the tests of the peer, downloaded if ``None``
    :param cache: The folder for the download, chosen if ``None``
    :param options: Further options for pytest
    :return: The outcomes
    """
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        if tests is None:
            cache = cache or default_cache()
            cache.mkdir(parents=True, exist_ok=True)
            tests = unpack_tests(download(PEERS[key], cache), Path(folder))
        copy = Path(shutil.copytree(tests, Path(folder) / "tests"))
        return run_pytest(key, algo, copy, files, options)


# --- the plugin: swap and selection ---------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that tell the plugin what to swap."""
    parser.addoption("--swap-peer", choices=sorted(PEERS))
    parser.addoption("--swap-algo", choices=sorted(ALGOS))
    parser.addoption("--swap-all", action="store_true", help="run the excluded tests, too")


def load_algo(name: str) -> type[BaseAlgorithm]:
    """The class that a key of ``ALGOS`` stands for."""
    package, attribute = ALGOS[name]
    algo: type[BaseAlgorithm] = getattr(importlib.import_module(package), attribute)
    return algo


def pytest_configure(config: pytest.Config) -> None:
    """Put our class in the place of the peer's, before any test file imports it from there."""
    key, name = config.getoption("--swap-peer"), config.getoption("--swap-algo")
    setattr(importlib.import_module(PEERS[key].package), swapped_class(key, name), load_algo(name))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that use the swapped class, and skip the excluded ones."""
    key = config.getoption("--swap-peer")
    name = config.getoption("--swap-algo")
    algo, swapped = load_algo(name), swapped_class(key, name)
    kept = [item for item in items if isinstance(item, pytest.Function) and uses(item, algo, swapped)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
    for item in items:
        reason = reason_to_skip(item.nodeid, config)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def reason_to_skip(name: str, config: pytest.Config) -> str | None:
    """
    :param name: The id of a test
    :param config: The options of the plugin
    :return: Why the test is not run, ``None`` if it is
    """
    base = name.split("[")[0]
    needed = NEEDS.get(base)
    if needed and importlib.util.find_spec(needed) is None:
        return f"{needed} is not installed"
    if config.getoption("--swap-all"):
        return None
    tables = [EXCLUDED.get((config.getoption("--swap-peer"), algo), {}) for algo in ("any", config.getoption("--swap-algo"))]
    return next((f"excluded: {table[id_]}" for table in tables for id_ in (name, base) if id_ in table), None)


def uses(item: pytest.Function, algo: type[BaseAlgorithm], swapped: str) -> bool:
    """
    Tell whether a test uses the swapped class.

    A test that is parametrised by algorithm uses the one that it is given, whatever else its body
    mentions. Any other test uses the classes that its code, its fixtures or its helpers mention.

    :param item: The test
    :param algo: The class that was swapped in
    :param swapped: The name of the class that was swapped out
    :return: Whether the test uses the class
    """
    params = item.callspec.params.values() if hasattr(item, "callspec") else ()
    given = [value for value in params if isinstance(value, type) and issubclass(value, BaseAlgorithm)]
    if given:
        return algo in given
    # test_tensorboard.py is parametrised by lower-case name
    if swapped.lower() in [value for value in params if isinstance(value, str)]:
        return True
    fixtures = [definition.func for group in item._fixtureinfo.name2fixturedefs.values() for definition in group]
    return any(mentions(function, algo, set()) for function in [item.function, *fixtures])


def mentions(function: Any, algo: type[BaseAlgorithm], seen: set[Any]) -> bool:
    """
    Tell whether a function reads the class from a global name, itself or through a function of its module.

    :param function: The function
    :param algo: The class
    :param seen: The functions visited so far, extended here
    :return: Whether it does
    """
    if not isinstance(function, FunctionType) or function in seen:
        return False
    seen.add(function)
    values = [function.__globals__.get(name) for name in global_names(function.__code__)]
    helpers = [value for value in values if getattr(value, "__module__", None) == function.__module__]
    return any(value is algo for value in values) or any(mentions(helper, algo, seen) for helper in helpers)


def global_names(code: CodeType) -> Iterator[str]:
    """The global names that the code of a function reads, including those of the functions within."""
    yield from (str(step.argval) for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from global_names(constant)


# --- the command line -----------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, that of the process if ``None``."""
    parser = argparse.ArgumentParser(description="Run the peers' own tests on our classes.")
    parser.add_argument("--algo", choices=list(ALGOS), nargs="+", default=["wnpg", "npg", "pg"], help="what to swap in")
    parser.add_argument("--peer", choices=list(PEERS), nargs="+", default=list(PEERS), help="whose tests to run")
    parser.add_argument("--files", nargs="+", default=[], metavar="FILE", help="run only these test files")
    parser.add_argument("--sb3-tests", type=Path, metavar="DIR", help="use these instead of downloading")
    parser.add_argument("--contrib-tests", type=Path, metavar="DIR", help="use these instead of downloading")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where to keep the downloads")
    parser.add_argument("--all", action="store_true", help="run the excluded tests, too")
    parser.add_argument("--verbose", action="store_true", help="show the output of pytest in any case")
    return parser.parse_args(argv)


def show(report: Report, verbose: bool) -> None:
    """
    Print the outcomes.

    :param report: The report of one peer
    :param verbose: Whether to print all that pytest wrote, also where nothing failed
    """
    if verbose or report.of("failed"):
        print(report.output)
    print(report)
    for case in report.of("skipped") + report.of("failed"):
        print(f"  {case.outcome} {case.name}: {(case.message.splitlines() or [''])[0]}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the tests of the peers on the classes.

    :param argv: The arguments, those of the process if ``None``
    :return: 0 if tests of every peer ran and none failed, 1 otherwise
    """
    args = parse(argv)
    given = {"sb3": args.sb3_tests, "contrib": args.contrib_tests}
    options = ["--swap-all"] if args.all else []
    status = 0
    for algo in args.algo:
        for key in args.peer:
            report = run_peer(key, algo, args.files, given[key], args.cache, options)
            show(report, args.verbose)
            if report.of("failed") or not report.of("passed"):
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
