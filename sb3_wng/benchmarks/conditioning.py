"""Fig. 3: how ill-conditioned is a task, and does that tell where the metric helps?

``python -m sb3_wng.benchmarks.conditioning [--seeds 70 71 72] [--jobs 1] [--output FILE]`` trains WNPG and the plain gradient
on eleven tasks and takes the Hessian of the surrogate, in the actor's parameters, on a fresh rollout of each trained policy.
Its eigenvalues are Lanczos' (``scipy.sparse.linalg.eigsh``), of which the paper shows the ratios of the largest to the others.
Settings are those in ``zoo_hyperparams/``, with WNPG's ``std_weight`` at 1 and constant radii. A run that is in the output
file is not repeated.

Columns: ``return``: mean of ten noise-free episodes (``random``: of random actions); ``ratio_i``: |lambda_1| / |lambda_i|, in
order of magnitude.
"""

from __future__ import annotations

import argparse
import io
import sys
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.sparse.linalg import LinearOperator, eigsh
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_wng.algorithms.policy_gradient import NaturalPolicyGradient
from sb3_wng.algorithms.surrogate import PolicyBatch, surrogate
from sb3_wng.benchmarks.experiments import CONSTANT_RADIUS, PROPER
from sb3_wng.benchmarks.figures import save, short
from sb3_wng.benchmarks.markdown import markdown
from sb3_wng.benchmarks.models import Experiment, Method, make_model
from sb3_wng.benchmarks.pool import run_pending
from sb3_wng.benchmarks.records import RESULTS, append_records, read_records
from sb3_wng.benchmarks.scores import random_returns

CSV, FIGURE = "conditioning.csv", "conditioning.png"
METRIC, PLAIN, RANDOM = "WNPG", "PG", "random"
RATIOS = (2, 3, 5, 10, 20, 30, 50, 100)  # positions of the eigenvalues that are kept
SUMMARY = 50  # the one that stands for a task
N_STEPS = 4096  # of the fresh rollout
N_EPISODES = 10
PENDULUMS = [f"Inverted{name}BulletEnv-v0" for name in ("Pendulum", "DoublePendulum", "PendulumSwingup")]
EXPERIMENT = Experiment(
    "conditioning",
    "",
    {METRIC: Method("WNPG", "wnpg", PROPER, dict.fromkeys(PENDULUMS, CONSTANT_RADIUS)), PLAIN: Method("PG", "pg")},
    dict.fromkeys(
        (
            *("CartPole-v1", "Pendulum-v1", "Acrobot-v1", "ReacherBulletEnv-v0"),
            *PENDULUMS,
            *(f"{name}BulletEnv-v0" for name in ("Hopper", "Walker2D", "HalfCheetah", "Ant")),
        ),
        50_000,
    ),
    (70, 71, 72),
)

SECTION = """## Conditioning (Fig. 3)

`python -m sb3_wng.benchmarks.conditioning --output docs/benchmarks/{csv}`: the paper finds the largest gains of the
Wasserstein gradient on the tasks whose Hessian is conditioned worst. Here are {n_tasks} tasks of {steps:,} steps, seeds
{seeds}: the ratio of the largest to the {summary}th eigenvalue (by magnitude) of the surrogate's Hessian in the actor's
parameters, at the trained policies (geometric mean over seeds), and the gain of WNPG over the plain gradient (mean return,
in units of the distance from random actions to the best run).

{table}

Spearman's rank correlation of conditioning and gain over the tasks: {plain} at the plain gradient's policies, {metric} at
WNPG's.

![Ratios of the largest eigenvalue to the others, geometric mean over seeds]({figure})
"""


# --- The Hessian ---


def surrogate_hessian(model: NaturalPolicyGradient, batch: PolicyBatch) -> LinearOperator:
    """The surrogate's Hessian in the actor's parameters, shape (p, p), as products with vectors."""
    parameters = list(model.actor_parameters)
    log_prob = model.policy.get_distribution(batch.observations).log_prob(batch.actions)
    grads = torch.autograd.grad(surrogate(log_prob, batch), parameters, create_graph=True, materialize_grads=True)
    gradient = torch.cat([grad.reshape(-1) for grad in grads])

    def product(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        direction = torch.as_tensor(vector.ravel(), dtype=gradient.dtype)
        columns = torch.autograd.grad(gradient @ direction, parameters, retain_graph=True, materialize_grads=True)
        return torch.cat([column.reshape(-1) for column in columns]).double().numpy()

    return LinearOperator((len(gradient), len(gradient)), matvec=product, dtype=np.float64)


def largest_eigenvalues(operator: LinearOperator, n: int) -> NDArray[np.float64]:
    """Magnitudes of the n largest, in descending order, to three digits."""
    # A start of one's own: scipy's is drawn anew each time
    start = np.random.default_rng(0).standard_normal(operator.shape[0])
    values = eigsh(operator, k=n, which="LM", tol=1e-3, v0=start, return_eigenvectors=False)
    return np.sort(np.abs(values))[::-1]


def fresh_rollout(model: NaturalPolicyGradient) -> PolicyBatch:
    """What the current policy does, ``model.n_steps`` steps in each environment."""
    _, callback = model._setup_learn(model.n_steps * model.n_envs, None)
    assert isinstance(callback, BaseCallback)
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model._policy_batch(next(model.rollout_buffer.get(batch_size=None)))


# --- The study ---


def run(environment: str, method: str, seed: int, output: Path) -> None:
    """Train one agent, measure it, and append its record."""
    torch.set_num_threads(1)
    key = {"experiment": EXPERIMENT.name, "algorithm": method, "environment": environment, "seed": seed}
    if method == RANDOM:
        append_records(output, [{**key, "return": f"{random_returns(environment, 50, seed).mean():.6g}"}])
        return
    model = make_model(EXPERIMENT, method, environment, seed)
    model.learn(EXPERIMENT.environments[environment], log_interval=10**9)
    model = with_longer_rollouts(model)
    values = largest_eigenvalues(surrogate_hessian(model, fresh_rollout(model)), max(RATIOS))
    statistics = model.get_vec_normalize_env()
    if statistics is not None:
        statistics.training, statistics.norm_reward = False, False
    assert model.env is not None
    record = {
        **key,
        "timesteps": EXPERIMENT.environments[environment],
        "return": f"{evaluate_policy(model, model.env, N_EPISODES)[0]:.6g}",
        **{f"ratio_{i}": f"{values[0] / values[i - 1]:.4g}" for i in RATIOS},
    }
    append_records(output, [record])
    print(environment, method, seed, record["return"], record[f"ratio_{SUMMARY}"], flush=True)


def with_longer_rollouts(model: BaseAlgorithm) -> NaturalPolicyGradient:
    """The same agent, whose rollouts hold :data:`N_STEPS` transitions."""
    content = io.BytesIO()
    model.save(content)
    content.seek(0)
    loaded = type(model).load(content, env=model.get_env(), device="cpu", n_steps=-(-N_STEPS // model.n_envs))
    assert isinstance(loaded, NaturalPolicyGradient)
    return loaded


# --- The report ---


def gains(rows: pd.DataFrame) -> pd.Series:
    """Mean return of :data:`METRIC` less that of :data:`PLAIN`, from random actions (0) to the best run (1), by task."""
    means = rows.groupby(["environment", "algorithm"], sort=False)["return"].mean().unstack()
    best = rows.groupby("environment", sort=False)["return"].max()
    return (means[METRIC] - means[PLAIN]) / (best - means[RANDOM])


def ratios(rows: pd.DataFrame, method: str) -> pd.DataFrame:
    """Geometric means over seeds, by task and position of the eigenvalue."""
    columns = [f"ratio_{i}" for i in RATIOS]
    return np.exp(np.log(rows[rows.algorithm == method].set_index("environment")[columns]).groupby(level=0, sort=False).mean())


def complete(folder: Path) -> pd.DataFrame:
    """Records of the tasks that all runs are there of."""
    path = folder / CSV
    if not path.exists():
        return pd.DataFrame()
    rows = pd.read_csv(path)
    trained = rows.algorithm.isin(EXPERIMENT.methods) & rows.seed.isin(EXPERIMENT.seeds)
    rows = rows[trained | (rows.algorithm == RANDOM)].drop_duplicates(["environment", "algorithm", "seed"])
    n_records = rows.groupby("environment")["seed"].transform("size")
    return rows[n_records == len(EXPERIMENT.methods) * len(EXPERIMENT.seeds) + 1]


def correlation(conditioning: pd.Series, gain: pd.Series) -> str:
    result = stats.spearmanr(conditioning, gain.loc[conditioning.index])
    return f"{result.statistic:.2f} (p = {result.pvalue:.2g})"


def section(folder: Path) -> str:
    """The section of the page; empty while fewer than three tasks have all their runs."""
    rows = complete(folder)
    if rows.empty or rows.environment.nunique() < 3:
        return ""
    gain, summary = gains(rows), {m: ratios(rows, m)[f"ratio_{SUMMARY}"] for m in (PLAIN, METRIC)}
    table = pd.DataFrame({f"at {m}'s policies": values.map("{:.0f}".format) for m, values in summary.items()})
    table["gain"] = gain.map("{:.2f}".format)
    table = table.loc[summary[PLAIN].sort_values(ascending=False).index].rename(index=short)
    return SECTION.format(
        csv=CSV,
        figure=FIGURE,
        steps=next(iter(EXPERIMENT.environments.values())),
        seeds=", ".join(map(str, EXPERIMENT.seeds)),
        summary=SUMMARY,
        table=markdown(table),
        n_tasks=len(table),
        plain=correlation(summary[PLAIN], gain),
        metric=correlation(summary[METRIC], gain),
    )


def draw(folder: Path) -> None:
    """Write the figure, if the section is there."""
    if not section(folder):
        return
    rows = complete(folder)
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained", sharex=True, sharey=True)
    for axes, method in zip(panels, (PLAIN, METRIC), strict=True):
        for index, (environment, values) in enumerate(ratios(rows, method).iterrows()):
            line = "-" if index < 10 else "--"
            axes.plot((1, *RATIOS), (1.0, *values), line, color=f"C{index % 10}", label=short(str(environment)))
        axes.set(title=f"at the policies of {method}", xlabel="eigenvalue, by magnitude", xscale="log", yscale="log")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("largest / this one")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    save(figure, folder / FIGURE, folder / CSV)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(EXPERIMENT.seeds))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / CSV)
    arguments = parser.parse_args()

    def pending() -> list[tuple[str, str, int]]:
        done = {(row["environment"], row["algorithm"], int(row["seed"])) for row in read_records(arguments.output)}
        wanted = [(e, m, s) for e in EXPERIMENT.environments for s in arguments.seeds for m in EXPERIMENT.methods]
        return [key for key in [*((e, RANDOM, 0) for e in EXPERIMENT.environments), *wanted] if key not in done]

    train = partial(run, output=arguments.output)  # which records
    return 0 if run_pending(arguments.output, arguments.jobs, pending, train, lambda *_: True) else 1


if __name__ == "__main__":
    sys.exit(main())
