"""What the learning experiments compare, as data."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from sb3_wng.benchmarks.models import Experiment, Method
from sb3_wng.benchmarks.no_critic import NoCriticPolicy
from sb3_wng.benchmarks.published import (
    ANT,
    CHEETAH,
    HOPPER,
    PAPER,
    PENDULUM,
    REACHER,
    REGULATOR,
    RL_ZOO,
    UPRIGHT,
    WALKER,
)

# RL-Zoo's settings of TRPO for PyBullet's robots, less the length of the rollout
TRPO_ROBOTS = {"n_envs": 2, "batch_size": 128, "cg_max_steps": 25, "n_critic_updates": 20, "learning_rate": 1e-3}
# RL-Zoo's network for the Reacher, and that of our files
REACHER_POLICY = {
    "log_std_init": -1,
    "ortho_init": False,
    "activation_fn": nn.ReLU,
    "net_arch": {"pi": [256, 256], "vf": [256, 256]},
}
TRPO_HALF = Method(
    "TRPO", arguments={**TRPO_ROBOTS, "n_steps": 512}, of_environment={REACHER: {"policy_kwargs": REACHER_POLICY}}
)
PROPER = {"std_weight": 1.0}  # the Wasserstein metric itself; zoo_hyperparams/ has 2 for the robots
# Of the pendulums in studies from before zoo_hyperparams/ had a falling radius and more damping for them
LESS_DAMPING = {"cg_damping": 0.1}
CONSTANT_RADIUS = {"target_distance": 0.02, "target_kl": 0.01, **LESS_DAMPING}
RELEASED_RATE = {"learning_rate": 5e-5}  # in the released code of the published WNPG, for all tasks; the paper sweeps it
WINDOWS = {**PROPER, "metric": "kernel", "n_basis": 10, "embedding": "final_state"}

FIRST_LEARNING = Experiment(
    "first_learning",
    "WNPG, NPG and PG with the settings in `zoo_hyperparams/` (but WNPG's `std_weight` is 1), PPO at SB3's defaults, TRPO "
    "with RL-Zoo's settings and with half that rollout. **Three seeds rank nothing**: Hopper has a plateau that a run leaves "
    "or does not. This is a check that everything trains, not a claim.",
    {
        "WNPG": Method("WNPG", "wnpg", PROPER),
        "NPG": Method("NPG", "npg"),
        "PG": Method("PG", "pg"),
        "PPO": Method("PPO"),
        "TRPO": Method("TRPO", "rl_zoo3/trpo"),
        "TRPO 2 x 512": TRPO_HALF,
    },
    dict.fromkeys((HOPPER, CHEETAH), 200_000),
    (30, 31, 32),
)

KERNEL_VARIANTS = Experiment(
    "kernel_variants",
    "WNPG with a kernel metric on single actions (50 functions), on windows' final states (10 functions), on the sum of the "
    "latter and the closed form, and in the published configuration (with the released code's learning rate).",
    {
        "actions": Method("WNPG", "wnpg", {**PROPER, "metric": "kernel", "n_basis": 50}),
        "final_state": Method("WNPG", "wnpg", WINDOWS),
        "combined, final_state": Method("WNPG", "wnpg", {**WINDOWS, "metric": "combined"}),
        "published": Method("WNPG", "published/wnpg", RELEASED_RATE),
    },
    dict.fromkeys((HOPPER, CHEETAH), 200_000),
    (30, 31, 32),
)

POLICY_GRADIENTS = Experiment(
    "policy_gradients",
    "Our methods have the settings in `zoo_hyperparams/`; the others have these:\n\n"
    "- *WNPG* has a `std_weight` of 2 for these tasks, Fisher's weighting of the spread, with which it differs from NPG only "
    "where action dimensions have different spreads (on the pendulum, with one action, in nothing but the line search); with "
    "1 (*WNPG, std_weight 1*) it is the Wasserstein metric.\n"
    "- *WNPG, published*: 5 functions and Adam, with the best of the paper's four learning rates by score on other seeds, "
    "1e-4 ([baseline settings](#baseline-settings)).\n"
    "- *PPO*: SB3's defaults. *PPO, RL-Zoo*: its settings, which are tuned for runs ten times as long.\n"
    "- *TRPO, defaults*: Contrib's. *TRPO*: RL-Zoo's settings (on the pendulum 8 x 2048 steps per rollout). *TRPO 2 x 512*: "
    "RL-Zoo's for robots, with rollouts of 2 x 512 steps.\n\n"
    "Ours were tuned on other seeds of HalfCheetah and InvertedDoublePendulum; the pendulum's settings, and BGWNPG's on "
    "HalfCheetah, were looked for after these seeds had been seen. PPO's default rate and TRPO's default radius have, of "
    "three, the best scores on tasks and seeds that ours were tuned on ([baseline settings](#baseline-settings)); nothing "
    "else of theirs was tuned here.",
    {
        "WNPG": Method("WNPG", "wnpg"),
        "WNPG, std_weight 1": Method("WNPG", "wnpg", PROPER),
        "NPG": Method("NPG", "npg"),
        "PG": Method("PG", "pg"),
        "BGPG": Method("BGPG", "bgpg"),
        "BGPG-KL": Method("BGPG", "bgpg", {"distance": "kl"}),
        "BGWNPG": Method("BGWNPG", "bgwnpg"),
        "WNPG, published": Method("WNPG", "published/wnpg"),
        "PPO": Method("PPO"),
        "PPO, RL-Zoo": Method("PPO", "rl_zoo3/ppo"),
        "TRPO, defaults": Method("TRPO"),
        "TRPO": Method("TRPO", "rl_zoo3/trpo"),
        "TRPO 2 x 512": TRPO_HALF,
    },
    dict.fromkeys((HOPPER, CHEETAH, WALKER, PENDULUM), 200_000),
    tuple(range(40, 50)),
    baselines=("WNPG", "NPG", "BGPG", "BGPG-KL", "PPO", "PPO, RL-Zoo", "TRPO", "TRPO, defaults", "TRPO 2 x 512"),
    saturating=(PENDULUM,),
    published=(PAPER, RL_ZOO),
)

RELEASED_SETTINGS = Experiment(
    "released_settings",
    "The published WNPG with the learning rate of the released code, 5e-5, on seeds of the comparison above, where it has "
    "1e-4.",
    {"WNPG, released": Method("WNPG", "published/wnpg", RELEASED_RATE)},
    dict.fromkeys((HOPPER, CHEETAH, PENDULUM), 200_000),
    POLICY_GRADIENTS.seeds,
    saturating=(PENDULUM,),
)

# Table 1 and Fig. 2 of the paper, at half of its longest runs
MILLION = replace(
    POLICY_GRADIENTS,
    name="policy_gradients_1m",
    description="The comparison above at a million steps, with two tasks more; on fresh seeds.",
    environments=dict.fromkeys((HOPPER, CHEETAH, WALKER, PENDULUM, REACHER, ANT), 1_000_000),
    seeds=tuple(range(70, 80)),
)

BASELINE_SETTINGS = Experiment(
    "baseline_settings",
    "PPO's learning rate (3e-4 is SB3's default), TRPO's radius with a rollout of 2 x 512 steps (a mean KL of 0.01 is "
    "Contrib's default, and RL-Zoo's), and the learning rate of the published WNPG (5e-5 in its code; the paper "
    "sweeps these four), on tasks and seeds that our methods were tuned on, too, and that the comparison above does not "
    "report.",
    {
        **{f"PPO rate {rate}": Method("PPO", None, {"learning_rate": rate}) for rate in (0.0001, 0.0003, 0.001)},
        **{
            f"TRPO radius {r}": replace(TRPO_HALF, arguments={**TRPO_HALF.arguments, "target_kl": r})
            for r in (0.005, 0.01, 0.02)
        },
        **{
            f"WNPG, published, rate {rate}": Method("WNPG", "published/wnpg", {"learning_rate": rate})
            for rate in (0.00001, 0.00005, 0.0001, 0.0003)
        },
    },
    dict.fromkeys((CHEETAH, PENDULUM), 200_000),
    (20, 21, 22),
    saturating=(PENDULUM,),
)

PENDULUM_SETTINGS = Experiment(
    "pendulum_settings",
    "What WNPG, NPG and BGWNPG did on the pendulum of the comparison above, on its seeds, with earlier settings: a radius "
    "that does not fall, then one that falls, both with a damping of 0.1 in place of 1 (BGWNPG at first with a critic at the "
    "epochs' rate). These runs were seen before the settings above were chosen, on other seeds.",
    {
        "WNPG, constant radius": Method("WNPG", "wnpg", CONSTANT_RADIUS),
        "WNPG, falling radius": Method("WNPG", "wnpg", LESS_DAMPING),
        "NPG, falling radius": Method("NPG", "npg", LESS_DAMPING),
        "BGWNPG, constant radius": Method(
            "BGWNPG", "bgwnpg", {**LESS_DAMPING, "target_distance": 0.04, "target_kl": 0.02, "learning_rate": 3e-4}
        ),
        "BGWNPG, falling radius": Method("BGWNPG", "bgwnpg", LESS_DAMPING),
    },
    {PENDULUM: 200_000},
    POLICY_GRADIENTS.seeds,
    saturating=(PENDULUM,),
)

HALF_CHEETAH_SETTINGS = Experiment(
    "half_cheetah_settings",
    "What BGWNPG did on the HalfCheetah of the comparison above, on its seeds, with earlier settings: twice the radius, and "
    "epochs at three times the rate. These runs were seen before the settings above were chosen, on other seeds.",
    {
        "BGWNPG, long steps": Method(
            "BGWNPG", "bgwnpg", {"target_distance": 0.04, "target_kl": 0.12, "actor_learning_rate": 3e-4}
        )
    },
    {CHEETAH: 200_000},
    POLICY_GRADIENTS.seeds,
)

# Raw advantages and a cap on the KL: what a fixed-rate step needs. Its damping is in absolute units: more than the policy's
# variance, which is to vanish, would undo the metric
FIXED_RATE = {
    **PROPER,
    "step_rule": "fixed_rate",
    "normalize_advantage": False,
    "target_kl": 0.5,
    "cg_damping": 1e-10,
}
REGULATOR_SETTINGS = {
    "n_envs": 1,
    "n_steps": 512,
    "normalize": False,  # moving statistics would move the policy, and rates would not mean the same from task to task
    "policy_kwargs": {"net_arch": {"pi": [], "vf": [64, 64]}},  # the optimum is linear
}
NO_CRITIC = {"policy": NoCriticPolicy, "policy_kwargs": {"net_arch": {"pi": [], "vf": []}}}
RADII = (0.02, 0.1, 0.5, 1.0)  # KL summed over action dimensions


def trust_regions(n_actions: int) -> dict[str, Method]:
    """Methods with the same radii: TRPO's argument is averaged over action dimensions, and WNPG's is twice that average
    while spreads are equal."""
    return {
        **{
            f"WNPG radius {r}": Method("WNPG", "wnpg", {**PROPER, "target_distance": 2 * r / n_actions, "target_kl": r})
            for r in RADII
        },
        **{f"NPG radius {r}": Method("NPG", "npg", {"target_kl": r}) for r in RADII},
        **{f"TRPO radius {r}": Method("TRPO", "rl_zoo3/trpo", {"target_kl": r / n_actions}) for r in RADII},
    }


DETERMINISTIC_OPTIMUM = Experiment(
    "deterministic_optimum",
    "A task whose best policy is deterministic, so that the spread must vanish: a regulator with known optimum "
    "(`LinearQuadratic-v0`: minus the return of an episode is its error, exploration included; "
    "linear policy, no critic, 512 steps per rollout, no VecNormalize). Rates: WNPG and the same with the Fisher metric take "
    "steps of a fixed rate on raw advantages with a cap of 0.5 on the KL divergence (a step past it is halved: rates of 0.2 "
    "and 0.4 are mostly the same runs); with a `std_weight` of 2 the spread moves "
    "half as fast, as in the Fisher metric. Radii: trust regions of WNPG, NPG and TRPO, in KL summed over the action "
    "dimensions (TRPO's argument is half of it; WNPG's radius is what has that KL while the spreads are equal). PPO has "
    "several learning rates and otherwise SB3's defaults. WNPG's rates below 0.05, its radii and its `std_weight` were added "
    "after the others had been seen.",
    {
        **{
            f"WNPG rate {r}": Method("WNPG", "wnpg", {**FIXED_RATE, "step_size": r}) for r in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
        },
        **{
            f"WNPG, std_weight 2, rate {r}": Method("WNPG", "wnpg", {**FIXED_RATE, "std_weight": 2.0, "step_size": r})
            for r in (0.02, 0.05, 0.2)
        },
        **{
            f"Fisher rate {r}": Method("WNPG", "wnpg", {**FIXED_RATE, "metric": "fisher", "step_size": r})
            for r in (0.05, 0.2, 1.0)
        },
        **trust_regions(n_actions=2),
        **{f"PPO rate {r}": Method("PPO", None, {"learning_rate": r}) for r in (0.0003, 0.001, 0.003)},
    },
    {REGULATOR: 51_200},
    tuple(range(60, 70)),
    n_bins=50,
    optimum={REGULATOR: 0.0},
    environment_arguments={REGULATOR: {**REGULATOR_SETTINGS, **NO_CRITIC}},
)
# The best rate of each metric, and what the radii and PPO's rates decide
BEST_RATES = ("WNPG rate 0.05", "WNPG, std_weight 2, rate 0.2", "Fisher rate 1.0")
FEWER = {
    name: method
    for name, method in DETERMINISTIC_OPTIMUM.methods.items()
    if name in BEST_RATES or name.startswith("PPO") or ("radius" in name and not name.endswith("1.0"))
}

DETERMINISTIC_OPTIMUM_CRITIC = replace(
    DETERMINISTIC_OPTIMUM,
    name="deterministic_optimum_critic",
    description="The regulator of the deterministic-optimum study with a learned critic (64-64) and nothing else changed.",
    methods=FEWER,
    environment_arguments={REGULATOR: REGULATOR_SETTINGS},
)

PRECISE_REACHING = Experiment(
    "precise_reaching",
    "Methods of the deterministic-optimum study, chosen by it, on a robot that has to hold its hand at a goal: all with "
    "rollouts of 2 x 512 steps and RL-Zoo's network for it.",
    FEWER,
    {REACHER: 300_000},
    DETERMINISTIC_OPTIMUM.seeds,
    environment_arguments={REACHER: {"n_envs": 2, "n_steps": 512, "normalize": True, "policy_kwargs": REACHER_POLICY}},
)

HOLDING_STILL = Experiment(
    "holding_still",
    "The same methods where balance and swing-up have to be learnt first: Gymnasium's pendulum, upright and at rest at first "
    "(`UprightPendulum-v0`), whose best return is exactly 0 with a deterministic policy; exploration makes it fall. All with "
    "rollouts of 4 x 512 steps, a discount of 0.98, a lambda of 0.95, networks of 64-64 and no VecNormalize, which were set "
    "before the first run and not looked for; critics as each algorithm has them.",
    {name: trust_regions(n_actions=1).get(name, method) for name, method in FEWER.items()},
    {UPRIGHT: 102_400},
    DETERMINISTIC_OPTIMUM.seeds,
    n_bins=50,
    optimum={UPRIGHT: 0.0},
    environment_arguments={
        UPRIGHT: {
            "n_envs": 4,
            "n_steps": 512,
            "gamma": 0.98,
            "gae_lambda": 0.95,
            "normalize": False,
            "policy_kwargs": {"net_arch": {"pi": [64, 64], "vf": [64, 64]}},
        }
    },
)

EXPERIMENTS = {
    e.name: e
    for e in (  # in the order of the report
        POLICY_GRADIENTS,
        DETERMINISTIC_OPTIMUM,
        DETERMINISTIC_OPTIMUM_CRITIC,
        HOLDING_STILL,
        PRECISE_REACHING,
        MILLION,
        KERNEL_VARIANTS,
        FIRST_LEARNING,
        BASELINE_SETTINGS,
        PENDULUM_SETTINGS,
        HALF_CHEETAH_SETTINGS,
        RELEASED_SETTINGS,
    )
}
