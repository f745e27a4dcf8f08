"""The tasks of the policy-gradient experiments, and what others have published on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

HOPPER, CHEETAH, WALKER = "HopperBulletEnv-v0", "HalfCheetahBulletEnv-v0", "Walker2DBulletEnv-v0"
PENDULUM, REACHER, REGULATOR = "InvertedDoublePendulumBulletEnv-v0", "ReacherBulletEnv-v0", "LinearQuadratic-v0"
ANT, UPRIGHT = "AntBulletEnv-v0", "UprightPendulum-v0"


@dataclass(frozen=True)
class Published:
    """Numbers of others, shown beside ours: simulators and budgets differ, so only their order compares.

    :param returns: by method, then by environment
    """

    source: str
    returns: Mapping[str, Mapping[str, float]]


PAPER = Published(
    "Moskovitz et al. 2021 (arXiv 2010.05380), Table 1: final average return of 5 trials in Roboschool (MuJoCo for Hopper and "
    "DoublePendulum), after up to 2M steps",
    {
        name: dict(zip((WALKER, CHEETAH, ANT, REACHER, PENDULUM, HOPPER), returns, strict=True))
        for name, returns in {
            "BGWNPG": (739.51, 1817.68, 2072.56, 4.37, 7254.98, 2439.56),
            "WNPG, published": (683.38, 1655.04, 1844.14, 2.13, 6740.96, 2235.23),
            "BGPG": (652.53, 1668.75, 1735.98, 0.46, 6526.48, 1934.43),
            "PPO": (516.47, 1412.57, 1627.01, -0.37, 4401.24, 1890.12),
            "PG": (529.60, 1334.27, 1566.63, -6.46, 3964.51, 1816.58),
        }.items()
    },
)
RL_ZOO = Published(
    "RL-Zoo's benchmark: one run each in the same simulator, evaluated deterministically, after 2M steps (TRPO on Hopper, "
    "PPO on Reacher, and the off-policy SAC and TQC: 1M; the others on Reacher: 300k)",
    {
        name: dict(zip((WALKER, CHEETAH, ANT, HOPPER, REACHER), returns, strict=True))
        for name, returns in {
            "PPO, RL-Zoo": (2110, 2925, 2866, 2575, 17.1),
            "TRPO": (1483, 2759, 2561, 2565, 14.7),
            "SAC": (2292, 2792, 3073, 2603, 18.1),
            "TQC": (2509, 3675, 3457, 2662, 18.3),
        }.items()
    },
)
