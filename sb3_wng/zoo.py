"""RL-Zoo with this package's algorithms: ``python -m sb3_wng.zoo <script> [arguments of rl_zoo3.<script>]``.

The only module that touches ``rl_zoo3``, with what a search samples (:mod:`sb3_wng.zoo_search`). RL-Zoo has no plugin
mechanism, but its three tables of algorithms are plain dictionaries that all of its scripts share, so that adding entries
before a script starts is enough.
"""

from __future__ import annotations

import argparse
import atexit
import difflib
import functools
import importlib
import importlib.resources
import importlib.util
import json
import runpy
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gymnasium.error import DependencyNotInstalled
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import Schedule

from sb3_wng import BGES, BGPG, BGWNES, BGWNPG, ES, NPG, NSRES, PG, SVPG, WNES, WNPG, WassersteinPopulation
from sb3_wng.population import AnnealedCoefficient, AnnealedTemperature, CyclicalTemperature
from sb3_wng.population.particles import kind_name
from sb3_wng.zoo_files import hyperparams_folder
from sb3_wng.zoo_search import (
    OF_PARTICLES,
    convert_evolution_strategy_params,
    convert_policy_gradient_params,
    convert_population_params,
    sample_evolution_strategy_params,
    sample_policy_gradient_params,
    sample_population_params,
)

if TYPE_CHECKING:
    import optuna

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"wnpg": WNPG, "bgwnpg": BGWNPG, "bgpg": BGPG, "npg": NPG, "pg": PG}
# n_envs must be a multiple of their number of particles or policies
POPULATIONS: dict[str, type[BaseAlgorithm]] = {"svpg": SVPG, "wassersteinpopulation": WassersteinPopulation}
STRATEGIES: dict[str, type[BaseAlgorithm]] = {"es": ES, "wnes": WNES, "bges": BGES, "bgwnes": BGWNES, "nsres": NSRES}
OURS = {**ALGORITHMS, **POPULATIONS, **STRATEGIES}
SCHEDULES: dict[str, tuple[type[Schedule], ...]] = {
    "temperature": (AnnealedTemperature, CyclicalTemperature),
    "wasserstein_coef": (AnnealedCoefficient,),
}
LINEAR = ("target_distance", "target_kl", "step_size", "actor_learning_rate", "wasserstein_coef")  # besides RL-Zoo's own

MODEL_SCRIPTS = ("train", "enjoy", "record_video", "record_training")  # these are given one --algo and one --env
PLOT_SCRIPTS = ("plots.plot_train", "plots.all_plots", "plots.plot_from_file")
SCRIPTS = (*MODEL_SCRIPTS, "benchmark", *PLOT_SCRIPTS, "load_from_hub", "push_to_hub")
USAGE = f"usage: python -m sb3_wng.zoo <script> [arguments of rl_zoo3.<script>]; scripts: {', '.join(SCRIPTS)}"

# What our extra "zoo" installs; RL-Zoo itself depends on none of the others although its scripts import them.
ZOO_EXTRA = {"rl_zoo3", "requests", "pandas", "seaborn", "matplotlib", "rliable", "scipy"}


def _with_our_schedules(preprocess: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """RL-Zoo's reader of ``lin_x``, which has a fixed list of arguments, for more of ours; and our schedules by name."""
    from rl_zoo3.utils import linear_schedule

    def read_linear(arguments: dict[str, Any], names: Sequence[str]) -> None:
        for name in names:
            value = arguments.get(name)
            if isinstance(value, str) and value.startswith("lin_"):
                arguments[name] = linear_schedule(value.removeprefix("lin_"))

    @functools.wraps(preprocess)
    def with_our_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        read_linear(hyperparams, LINEAR)
        if isinstance(particles := hyperparams.get("algorithm_kwargs"), str):
            hyperparams["algorithm_kwargs"] = eval(particles)  # as RL-Zoo does policy_kwargs
        if isinstance(particles := hyperparams.get("algorithm_kwargs"), dict):
            hyperparams["algorithm_kwargs"] = dict(particles)  # RL-Zoo writes the given one to the run's folder
            read_linear(hyperparams["algorithm_kwargs"], ("learning_rate", "target_distance", "target_kl"))
        for name in SCHEDULES:
            if isinstance(hyperparams.get(name), str):
                hyperparams[name] = _schedule(name, hyperparams[name])
        return preprocess(hyperparams)

    return with_our_schedules


def _with_particles(objective: Callable[..., float]) -> Callable[..., float]:
    """RL-Zoo's objective of a search, which lets the sampler of a population know the file's particles and their arguments."""

    @functools.wraps(objective)
    def with_particles(manager: Any, trial: optuna.Trial) -> float:
        if manager.algo in POPULATIONS:
            trial.set_user_attr("particles", kind_name(manager._hyperparams.get("algorithm", "wnpg")))
            given = manager._hyperparams.get("algorithm_kwargs") or {}
            try:
                kept = json.dumps({name: value for name, value in given.items() if name not in OF_PARTICLES.values()})
            except TypeError as error:
                _fail(f"algorithm_kwargs of a search must be numbers, strings, lists or true and false: {error}")
            trial.set_user_attr("algorithm_kwargs", kept)
        return objective(manager, trial)

    return with_particles


def _schedule(name: str, text: str) -> Schedule:
    """``AnnealedTemperature(100, 1)`` and the like, evaluated as RL-Zoo evaluates ``policy_kwargs``."""
    try:
        return eval(text, {"__builtins__": {}}, {schedule.__name__: schedule for schedule in SCHEDULES[name]})
    except Exception as error:  # whatever an expression may raise
        names = " or ".join(schedule.__name__ for schedule in SCHEDULES[name])
        linear = ", lin_x" if name in LINEAR else ""
        _fail(f"{name} must be a number{linear}, or {names} with arguments, where it may be a schedule: got {text!r}: {error}")


def register() -> None:
    """Make RL-Zoo know our algorithms (and every installed environment). Harmless when called again."""
    # Imported here, not at the top: the message about a missing rl_zoo3 must not need rl_zoo3.
    # import_envs registers the Bullet environments when they are installed.
    import rl_zoo3.import_envs
    from rl_zoo3.exp_manager import ExperimentManager
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    rl_zoo3.ALGOS.update(OURS)
    preprocess = ExperimentManager._preprocess_schedules
    if not hasattr(preprocess, "__wrapped__"):
        ExperimentManager._preprocess_schedules = staticmethod(_with_our_schedules(preprocess))  # type: ignore[assignment]
        ExperimentManager.objective = _with_particles(ExperimentManager.objective)  # type: ignore[method-assign]
    for algo in ALGORITHMS:
        HYPERPARAMS_SAMPLER[algo] = functools.partial(sample_policy_gradient_params, algo=algo)
        HYPERPARAMS_CONVERTER[algo] = convert_policy_gradient_params
    for algo in POPULATIONS:
        HYPERPARAMS_SAMPLER[algo] = functools.partial(sample_population_params, algo=algo)
        HYPERPARAMS_CONVERTER[algo] = convert_population_params
    for algo in STRATEGIES:
        HYPERPARAMS_SAMPLER[algo] = functools.partial(sample_evolution_strategy_params, algo=algo)
        HYPERPARAMS_CONVERTER[algo] = convert_evolution_strategy_params


def hyperparams_file(algo: str, is_published: bool = False) -> Path:
    """Where the hyperparameters of one of our algorithms are.

    :param is_published: the settings of the paper instead of the tuned ones
    """
    folder = hyperparams_folder()
    path = folder / "published" / f"{algo}.yml" if is_published else folder / f"{algo}.yml"
    if not path.exists():
        _fail(f"there is no {path.relative_to(folder)} among the shipped hyperparameters")
    return path


def _settings_of_version_4(algo: str, env_id: str) -> list[str]:
    """Arguments that give version 5 of a MuJoCo task the settings that RL-Zoo has for version 4, in place of its defaults."""
    import yaml

    entries = yaml.safe_load(importlib.resources.files("rl_zoo3").joinpath(f"hyperparams/{algo}.yml").read_text())
    version_4 = env_id.removesuffix("-v5") + "-v4"
    if env_id in entries or version_4 not in entries:
        return []
    folder = Path(tempfile.mkdtemp(prefix="sb3_wng_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / f"{algo}.yml"
    path.write_text(yaml.safe_dump({env_id: entries[version_4]}))
    print(f"RL-Zoo has no settings for {env_id} and would take its defaults; these are its settings for {version_4}")
    return ["--conf-file", str(path)]


def _fail(message: str) -> NoReturn:
    print(f"sb3_wng.zoo: {message}", file=sys.stderr)
    raise SystemExit(2)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read what is decided here; everything else is for RL-Zoo's own parser, mistakes included."""
    defaults: dict[str, Any] = {"algo": "ppo", "env": "CartPole-v1", "conf_file": None, "gym_packages": []}
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--algo")
    parser.add_argument("--env")
    parser.add_argument("-conf", "--conf-file")
    parser.add_argument("--gym-packages", nargs="+")
    parser.set_defaults(**defaults)
    try:
        return parser.parse_known_args(arguments)[0]
    except argparse.ArgumentError:
        return argparse.Namespace(**defaults)


def _check_algorithm(algo: str) -> None:
    import rl_zoo3

    if algo not in rl_zoo3.ALGOS:
        _fail(f"unknown --algo {algo!r}; known: {', '.join(sorted(rl_zoo3.ALGOS))}")


def _check_environment(env_id: str, gym_packages: Sequence[str]) -> None:
    import gymnasium

    for package in gym_packages:
        if importlib.util.find_spec(package.partition(".")[0]) is None:
            _fail(f"--gym-packages {package} is not installed")
        importlib.import_module(package)
    if env_id in gymnasium.registry:
        return
    if "Bullet" in env_id and "HopperBulletEnv-v0" not in gymnasium.registry:
        _fail(f"--env {env_id} needs pybullet_envs_gymnasium: pip install 'sb3-wng[envs]'")
    matches = difflib.get_close_matches(env_id, gymnasium.registry)
    _fail(f"unknown --env {env_id!r}" + (f"; close matches: {', '.join(matches)}" if matches else ""))


@contextmanager
def _our_children() -> Iterator[None]:
    """Send the commands that RL-Zoo spawns through this launcher, since a new process does not know our algorithms.

    ``benchmark`` calls ``python enjoy.py`` (which works in RL-Zoo's repository only) and ``record_training`` calls
    ``python -m rl_zoo3.record_video``, both through ``subprocess.call`` and with no other hook.
    """
    call = subprocess.call

    def redirected_call(command: Any, *args: Any, **kwargs: Any) -> int:
        match command:
            case ["python", "enjoy.py", *arguments]:
                command = [sys.executable, "-m", "sb3_wng.zoo", "enjoy", *arguments]
            case ["python", "-m", "rl_zoo3.record_video", *arguments]:
                command = [sys.executable, "-m", "sb3_wng.zoo", "record_video", *arguments]
        return call(command, *args, **kwargs)

    subprocess.call = redirected_call  # type: ignore[assignment]
    try:
        yield
    finally:
        subprocess.call = call


def _run(script: str, arguments: list[str]) -> None:
    """Run an RL-Zoo script as if from the command line, under this launcher's name in its usage messages."""
    previous = sys.argv
    sys.argv = [f"python -m sb3_wng.zoo {script}", *arguments]
    # rl_zoo3.plots imports its own scripts, about which runpy warns although it does no harm.
    warnings.filterwarnings("ignore", message=".*found in sys.modules", category=RuntimeWarning)
    try:
        with _our_children():
            runpy.run_module(f"rl_zoo3.{script}", run_name="__main__")
    finally:
        sys.argv = previous


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of RL-Zoo's scripts with our algorithms and their hyperparameters known to it."""
    script, *arguments = (sys.argv[1:] if argv is None else argv) or [""]
    if script in ("-h", "--help"):
        print(USAGE)
        return
    if script not in SCRIPTS:
        _fail(f"unknown script {script!r}; known: {', '.join(SCRIPTS)}" if script else USAGE)
    try:
        register()
        if script in MODEL_SCRIPTS:
            options = _parse(arguments)
            _check_algorithm(options.algo)
            _check_environment(options.env, options.gym_packages)
            is_published = options.conf_file == "published"
            if script == "train" and (is_published or (options.conf_file is None and options.algo in OURS)):
                arguments += ["--conf-file", str(hyperparams_file(options.algo, is_published))]
            elif script == "train" and options.conf_file is None and options.env.endswith("-v5"):
                arguments += _settings_of_version_4(options.algo, options.env)
        _run(script, arguments)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ZOO_EXTRA:
            raise
        _fail(f"{missing} is not installed: pip install 'sb3-wng[zoo]'")
    except ValueError as error:
        if not str(error).startswith(("No model found", "No checkpoint found")):
            raise
        _fail(f"{error}. A search, or a run that failed, leaves an empty folder: --exp-id N picks another than the latest")
    except DependencyNotInstalled as error:  # a task's simulator
        _fail(f"{error}" + (". It comes with: pip install 'sb3-wng[envs]'" if "mujoco" in str(error).lower() else ""))


if __name__ == "__main__":
    main()
