"""Which embedding for which task: ``python -m sb3_wng.benchmarks.embedding_ranks --output FILE [--page FILE]``.

WNPG learns four tasks; at three stages, :func:`sb3_wng.rank_embeddings` compares all embeddings on a large rollout of the
policy of that stage. Then what each metric's part of an update costs. What is already in the output file is not repeated.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from sb3_wng import WNPG, rank_embeddings
from sb3_wng.algorithms import EmbeddingRank, NaturalPolicyGradient, format_table
from sb3_wng.algorithms.behavior_samples import STATE_EMBEDDINGS
from sb3_wng.benchmarks.experiments import CONSTANT_RADIUS, PENDULUM, PROPER
from sb3_wng.benchmarks.figures import short
from sb3_wng.benchmarks.markdown import markdown
from sb3_wng.benchmarks.models import shipped_hyperparameters
from sb3_wng.benchmarks.records import RESULTS, append_records
from sb3_wng.benchmarks.update_cost import seconds

TASKS = ("HopperBulletEnv-v0", "HalfCheetahBulletEnv-v0", "InvertedDoublePendulumBulletEnv-v0", "CartPole-v1")
STAGES = (2048, 20480, 40960)
SEED = 50
N_ENVS, N_STEPS = 2, 8192  # of the rollout that is ranked: each half must hold several episodes and 2 n_basis windows
N_BASIS, COST_BASES = 50, (10, 50)
COLUMNS = (
    *("experiment", "environment", "seed", "timesteps", "metric", "n_basis"),
    *("action_gain", "kl_gain", "held_out_gain", "own_gain", "closed_form_gain", "effective_rank", "noise"),
    *("n_samples", "damping", "milliseconds"),
)


def rank_task(environment: str) -> Iterator[dict[str, object]]:
    """Train once; at every stage, rank on a rollout that plays no part in learning."""
    arguments = {**shipped_hyperparameters("wnpg", environment), **PROPER}
    if environment == PENDULUM:
        arguments.update(CONSTANT_RADIUS)
    arguments.pop("normalize", None)  # always
    env = VecNormalize(make_vec_env(environment, arguments.pop("n_envs"), seed=SEED), gamma=0.99)
    model = WNPG("MlpPolicy", env, **arguments, seed=SEED, device="cpu")
    assert isinstance(model, NaturalPolicyGradient)
    training_env = model.get_vec_normalize_env()
    assert training_env is not None
    for stage in STAGES:
        model.learn(stage - model.num_timesteps, reset_num_timesteps=False)
        env = VecNormalize(make_vec_env(environment, N_ENVS, seed=SEED + 1000), training=False)
        env.obs_rms, env.ret_rms = training_env.obs_rms, training_env.ret_rms
        ranked = WNPG(
            "MlpPolicy", env, n_steps=N_STEPS, gae_lambda=model.gae_lambda, gamma=model.gamma, seed=SEED, device="cpu"
        )
        ranked.policy.load_state_dict(model.policy.state_dict())
        for rank in rank_embeddings(ranked, [*STATE_EMBEDDINGS, *OF_TRAJECTORIES], n_basis=N_BASIS):
            values = {key: value for key, value in rank._asdict().items() if key != "embedding"}
            rounded = {key: f"{value:.5g}" if isinstance(value, float) else value for key, value in values.items()}
            row = {"experiment": "rank", "environment": environment, "seed": SEED, "timesteps": stage}
            yield {**dict.fromkeys(COLUMNS), **row, "metric": rank.embedding, "n_basis": N_BASIS, **rounded}
        env.close()


def variants() -> dict[tuple[str, int | None], dict[str, Any]]:
    """Arguments of WNPG by the names of a metric and its number of basis functions."""
    settings: dict[tuple[str, int | None], dict[str, Any]] = {
        (metric, None): {"metric": metric} for metric in ("closed_form", "fisher", "euclidean")
    }
    for n_basis in COST_BASES:
        for embedding in (*STATE_EMBEDDINGS, *OF_TRAJECTORIES):
            settings[embedding, n_basis] = {"metric": "kernel", "embedding": embedding, "n_basis": n_basis}
    return settings


def time_updates(environment: str, repeats: int) -> Iterator[dict[str, object]]:
    """Median CPU milliseconds of the policy's part of an update, all from one rollout and the same parameters."""
    arguments = shipped_hyperparameters("wnpg", environment)
    env = VecNormalize(make_vec_env(environment, arguments["n_envs"], seed=SEED))
    common = {"n_steps": arguments["n_steps"], "target_kl": arguments["target_kl"], "n_critic_updates": 0}
    models = {
        key: WNPG("MlpPolicy", env, **common, **settings, seed=SEED, device="cpu") for key, settings in variants().items()
    }
    first = next(iter(models.values()))
    _, callback = first._setup_learn(1)
    first.collect_rollouts(env, callback, first.rollout_buffer, first.n_steps)
    start = {name: value.clone() for name, value in first.policy.state_dict().items()}
    times: dict[tuple[str, int | None], list[float]] = {key: [] for key in models}
    for _ in range(repeats + 1):
        for key, model in models.items():
            model.rollout_buffer = first.rollout_buffer
            model.set_logger(configure(None, []))
            model.policy.load_state_dict(start)
            times[key].append(seconds(model.train))
    for (metric, n_basis), values in times.items():
        row = {"experiment": "cost", "environment": environment, "seed": SEED, "metric": metric, "n_basis": n_basis}
        yield {**dict.fromkeys(COLUMNS), **row, "milliseconds": f"{1e3 * statistics.median(values[1:]):.4g}"}


PAGE = """# Which behavioural embedding for a task?

The paper on WNPG ([arXiv 2010.05380](https://arxiv.org/abs/2010.05380)) leaves this open: a kernel metric can compare
final states, rewards, action sequences or a function of your own, and nothing says which of them to take.
`rank_embeddings` asks a rollout: what would each one's natural gradient gain?

```python
from sb3_wng import WNPG, rank_embeddings
from sb3_wng.algorithms import format_table


def last_height(trajectory):
    return trajectory.observations[-1, :1]


model = WNPG("MlpPolicy", "Pendulum-v1", n_steps=2048, gamma=0.9, seed=0)
print(format_table(rank_embeddings(model, ["actions", "final_state", last_height], n_basis=10)))
```

An empty rollout buffer is filled first; else the rollout in it is used, and the model goes on to train as if nobody had
asked. The closed-form, Fisher and Euclidean metrics always take part, as controls.

- **gain / action**: first-order gain $g^\\top d$ of the surrogate per unit of Wasserstein movement of the actions, in units of
  their spread, for the natural direction $d$ of the row's metric. On the rollout that $d$ comes from, the closed form is
  the best by construction.
- **gain / KL**: the same per $\\sqrt{{2\\,\\mathrm{{KL}}}}$ per action dimension.
- **held out**: gain / action again, but with directions from one half of the rollout, and the gradient and lengths on the
  other. The damping is the best of three by this column, which sorts the table.
- **own (closed form)**: held out, per unit of movement in the row's own metric; in parentheses, of the closed form's
  direction. A metric that is known well beats the closed form in its own units.
- **rank (noise)**: effective rank of the kernel metric. Of its squared length, the share that is left when the scores of
  samples get random signs: near 100 %, the metric is noise. Reparametrised actions have no scores.

`EmbeddingRank` also has the damping and the number of samples (`n_samples`).

## What is seen

`python -m sb3_wng.benchmarks.embedding_ranks --output docs/benchmarks/embedding_ranks.csv --page docs/guide/embeddings.md`
trains WNPG (seed {seed}; shipped settings, but a `std_weight` of 1, and on the pendulum a
constant radius and a damping of 0.1) and ranks on {n_steps} further steps of the policies of three stages, with
{n_basis} basis functions and windows of 32 steps. Held-out gain after {stages} steps:

{gains}

{task} after {stage} steps in full:

{example}

- **Metrics of single actions gain most.** The closed form, Fisher or the kernel metric on `actions` leads at {n_single} of the
  {n_clear} stages at which the closed form gains at least {clear} (at the others the rollout hardly determines a gradient).
  Mean share of the closed form's gain:
  {shares}.
- **Rewards in the embedding are no shortcut.** The metric of `reward_to_go` distinguishes few directions (effective rank
  {reward_rank:.1f}, median), and makes a change of the rewards expensive, which is what the gradient asks for.
- **In their own units**, the directions of trajectory embeddings beat the closed form's at {n_own} of {n_pairs} pairs of
  embedding and stage. Where they do not, the metric of one half says little about movement on the other.
- **Noise.** Random signs leave {noise_first} of the squared movement of `final_state`, `reward_to_go` and
  `state_visitation` at the first stage and {noise_last} at the last (medians).

This is one seed, and a first-order gain: a metric may still explore or keep behaviour better than its gain per movement says.

## What it costs

CPU milliseconds of the policy's part of an update, HopperBullet, 2 environments x 512 steps, one thread; medians, all from the
same rollout. In parentheses: relative to the closed form with 15 CG steps. Read the ratios.

{cost}

## How a step moves behaviour

![Transport fields of three steps of WNPG](../images/transport_field.png)

The dots are where a rollout's episodes end, the arrows the optimal vector field $\\nabla f_u$ of the paper's eq. 5 for the
parameter step $u$ that WNPG takes next, with that end as embedding and `metric="kernel"`. From the start (circle), behaviour
moves towards the goal (star), first as a whole, then also together.
`python examples/transport_field.py --output docs/images/transport_field.png` draws it, with
`sb3_wng.geometry.transport_field`.
"""
CLEAR = 0.05
SINGLE = ("closed_form", "fisher", "actions")
# Embeddings of trajectories that were measured; a new one wants a new measurement of all
OF_TRAJECTORIES = ("action_sequence", "final_state", "reward_to_go", "state_visitation")
FROM_REWARDS_AND_STATES = ("final_state", "reward_to_go", "state_visitation")


def page(path: Path) -> str:
    """The guide to embeddings for a CSV file of this module."""
    rows = pd.read_csv(path)
    ranks = rows[rows.experiment == "rank"].astype({"timesteps": int, "n_basis": int, "n_samples": int, "seed": int})
    index = ["environment", "timesteps"]
    gains = ranks.pivot(index=index, columns="metric", values="held_out_gain")
    clear = gains[gains["closed_form"] >= CLEAR]
    shares = clear.div(clear["closed_form"], axis=0).mean().drop("closed_form").sort_values(ascending=False)
    trajectories = ranks[ranks.metric.isin(OF_TRAJECTORIES)].set_index(index).loc[clear.index]
    from_scores = ranks[ranks.metric.isin(FROM_REWARDS_AND_STATES)].groupby("timesteps")["noise"].median()
    stages = sorted(ranks.timesteps.unique())
    task, stage = TASKS[0], stages[1]
    example = ranks[(ranks.environment == task) & (ranks.timesteps == stage)]
    return PAGE.format(
        seed=ranks.seed.iloc[0],
        n_steps=ranks.n_samples.max(),
        n_basis=ranks.n_basis.iloc[0],
        stages=" / ".join(map(str, stages)),
        gains=gains_table(ranks),
        task=task,
        stage=stage,
        example=format_table(
            [EmbeddingRank(row.metric, *row[list(EmbeddingRank._fields[1:])]) for _, row in example.iterrows()]
        ),
        n_single=clear.idxmax(axis=1).isin(SINGLE).sum(),
        n_clear=len(clear),
        clear=CLEAR,
        shares=", ".join(f"`{name}` {percent(share)}" for name, share in shares.items()),
        reward_rank=trajectories[trajectories.metric == "reward_to_go"].effective_rank.median(),
        n_own=(trajectories.own_gain > trajectories.closed_form_gain).sum(),
        n_pairs=len(trajectories),
        noise_first=percent(from_scores.iloc[0]),
        noise_last=percent(from_scores.iloc[-1]),
        cost=cost_table(rows[rows.experiment == "cost"]),
    )


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def gains_table(ranks: pd.DataFrame) -> str:
    """A row for each metric and a column for each task, whose cells have the gains of all stages."""
    in_order = ranks.sort_values("timesteps").groupby(["metric", "environment"])["held_out_gain"]
    cells = in_order.agg(lambda gains: " / ".join(f"{gain:.3f}" for gain in gains)).unstack("environment")
    order = [*SINGLE, *(name for name in (*STATE_EMBEDDINGS, *OF_TRAJECTORIES) if name not in SINGLE), "euclidean"]
    return markdown(cells.loc[order, list(TASKS)].rename(columns=lambda name: short(name).removesuffix("-v1")))


def cost_table(cost: pd.DataFrame) -> str:
    """A row for each metric and a column for each number of basis functions; metrics without one have a single number."""
    closed_form = cost.set_index("metric").milliseconds["closed_form"]
    cells = cost.milliseconds.map("{:.0f}".format) + (cost.milliseconds / closed_form).map(" ({:.2f})".format)
    columns = cost.n_basis.map(lambda n_basis: "no basis" if pd.isna(n_basis) else f"n_basis={n_basis:.0f}")
    table = pd.DataFrame({"metric": cost.metric, "column": columns, "cell": cells})
    wide = table.pivot(index="metric", columns="column", values="cell").fillna("")
    return markdown(wide.loc[cost.metric.drop_duplicates(), columns.drop_duplicates()])


def measure(path: Path, repeats: int) -> None:
    """Append what the file lacks, a task at a time."""
    done = set(pd.read_csv(path)[["experiment", "environment"]].itertuples(index=False, name=None)) if path.exists() else set()
    for environment in TASKS:
        if ("rank", environment) not in done:
            append_records(path, list(rank_task(environment)))
            print("ranked", environment, flush=True)
    if ("cost", TASKS[0]) not in done:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The kernel metric has")
            append_records(path, list(time_updates(TASKS[0], repeats)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=RESULTS / "embedding_ranks.csv")
    parser.add_argument("--page", type=Path, help="guide to write from the file, e.g. docs/guide/embeddings.md")
    parser.add_argument("--repeats", type=int, default=15, help="of each timing")
    arguments = parser.parse_args()
    import pybullet_envs_gymnasium  # noqa: F401  # registers the robots

    torch.set_num_threads(1)
    measure(arguments.output, arguments.repeats)
    if arguments.page is not None:
        arguments.page.write_text(page(arguments.output), encoding="utf-8")


if __name__ == "__main__":
    main()
