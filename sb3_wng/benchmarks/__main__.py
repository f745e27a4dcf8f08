"""``python -m sb3_wng.benchmarks list | run EXPERIMENT | report | random-returns``.

Studies that are no comparison of learning curves have modules and arguments of their own; ``run STUDY`` hands over to them.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from sb3_wng.benchmarks.experiments import EXPERIMENTS
from sb3_wng.benchmarks.records import RESULTS, WORK

TOY = "gaussian_toy"
STUDIES = {
    "conditioning": "Fig. 3: eigenvalues of the surrogate, and where the metric gains",
    "embedding_ranks": "what the natural gradient of each embedding would gain",
    "unseen_states": "how far an update moves states that its rollout does not show",
    "evolution_study": "evolution strategies before a wall (Fig. 4)",
    "svpg_study": "SVPG's table, temperature, population size and ablations",
    "multipolicy_study": "policies that attract or repel: two goals, and routes on a grid",
    "gait_study": "two gaits of one robot",
    "update_cost": "what an update costs",
    "training_cost": "what an experiment's methods cost in turn, for its minutes",
    "penalty_cost": "what a behaviour penalty costs",
    "svpg_speed": "how fast populations collect experience",
    "evolution_speed": "how fast evolution strategies' workers are",
}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sb3_wng.benchmarks")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="experiments and how much of them is finished")
    run = commands.add_parser("run", help="run an experiment, or what is left of it")
    run.add_argument(
        "experiment", choices=[*EXPERIMENTS, TOY, *STUDIES], help="studies have arguments of their own: STUDY --help"
    )
    run.add_argument("--seeds", type=int, nargs="+", help="(default: the experiment's)")
    run.add_argument("--algorithms", nargs="+", metavar="NAME", help="names in the tables (default: all)")
    run.add_argument("--environments", nargs="+", metavar="ID", help="(default: all)")
    run.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    run.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS", help="pause after so long")
    run.add_argument("--checkpoint-every", type=int, default=10, metavar="ROLLOUTS")
    run.add_argument("--work", type=Path, default=WORK, help="folder of checkpoints (default: %(default)s)")
    commands.add_parser("report", help="regenerate every table and figure from the CSV files")
    commands.add_parser("random-returns", help="measure the returns of random actions, which scores count as 0")
    for command in commands.choices.values():
        command.add_argument("--results", type=Path, default=RESULTS, help="folder of CSV files (default: %(default)s)")
    parsed = parser.parse_args(arguments)
    for name in ("jobs", "checkpoint_every", "budget"):
        if getattr(parsed, name, 1) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if parsed.command == "report" and not parsed.results.is_dir():
        parser.error(f"{parsed.results} has no results: run an experiment first, or pass --results")
    return parsed


def list_experiments(results: Path, work: Path) -> None:
    from sb3_wng.benchmarks.runner import finished, make_runs

    for name, experiment in EXPERIMENTS.items():
        runs = make_runs(experiment, results, work)
        done = len({run.key for run in runs} & finished(results / f"{name}.csv"))
        size = f"{len(experiment.methods)} methods, {len(experiment.environments)} tasks, {len(experiment.seeds)} seeds"
        print(f"{name:22} {done:4}/{len(runs)} runs   {size}")
    print(f"{TOY:22} {'done' if (results / f'{TOY}.csv').exists() else 'to do'}")
    print("\nStudies, with arguments of their own (run STUDY --help):")
    for name, description in STUDIES.items():
        print(f"{name:22} {description}")


def run_study(name: str, arguments: list[str]) -> int:
    """Hand over to a study's own command line; its exit status."""
    sys.argv = [f"{name}.py", *arguments]
    return importlib.import_module(f"sb3_wng.benchmarks.{name}").main() or 0


def run_experiment(parsed: argparse.Namespace) -> bool:
    """Whether all that was asked for is finished.

    :raises ValueError: for what the experiment does not have, or lacks settings for
    """
    if parsed.experiment in STUDIES:
        raise ValueError(f"name the study first: run {parsed.experiment} ...")
    if parsed.experiment == TOY:
        from sb3_wng.benchmarks import gaussian_toy

        gaussian_toy.write(parsed.results / f"{TOY}.csv")
        return True
    from sb3_wng.benchmarks.runner import make_runs, run_all

    experiment = EXPERIMENTS[parsed.experiment]
    runs = make_runs(experiment, parsed.results, parsed.work, parsed.algorithms, parsed.environments, parsed.seeds)
    return run_all(runs, parsed.jobs, parsed.budget, parsed.checkpoint_every)


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["run"] and len(given) > 1 and given[1] in STUDIES:
        return run_study(given[1], given[2:])
    parsed = parse_arguments(given)
    if parsed.command == "list":
        list_experiments(parsed.results, WORK)
    elif parsed.command == "run":
        try:
            return 0 if run_experiment(parsed) else 1
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    elif parsed.command == "report":
        from sb3_wng.benchmarks import report

        report.write(parsed.results)
    else:
        from sb3_wng.benchmarks import scores

        scores.measure_random_returns(parsed.results / scores.CONSTANTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
