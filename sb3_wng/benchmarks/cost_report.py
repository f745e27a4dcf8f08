"""Tables of what an update costs, from its CSV file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sb3_wng.benchmarks.markdown import markdown

COST = """## What an update costs

`python -m sb3_wng.benchmarks.update_cost --output docs/benchmarks/update_cost.csv`: HopperBullet, 8 environments x 256 steps,
64-64 networks, one thread, 15 CG steps and 20 critic passes for all trust-region methods, PPO at SB3's defaults;
algorithms take turns in one process, medians. Read the ratios, not the milliseconds.

{update}

The Jacobian of the kernel metric (64-64 network), milliseconds by batched backward passes against a loop of them:

{jacobian}

Memory: a Jacobian of {memory_subject} adds {memory:.1f} times the n_basis x p numbers that it consists of.
"""


def section(folder: Path) -> str:
    """Tables, as Markdown; empty without measurements."""
    if not (folder / "update_cost.csv").exists():
        return ""
    cost = pd.read_csv(folder / "update_cost.csv")
    memory = cost[cost.experiment == "memory"].iloc[0]
    return COST.format(
        update=update_table(cost), jacobian=jacobian_table(cost), memory_subject=memory.subject, memory=memory.value
    )


def update_table(cost: pd.DataFrame) -> str:
    wide = cost[cost.experiment == "update"].pivot(index="subject", columns="quantity", values="value")
    wide = wide.loc[cost[cost.experiment == "update"].subject.drop_duplicates()]
    trpo, ppo = wide.loc["TRPO"], wide.loc["PPO"]
    columns = {
        "policy part, ms": wide["policy ms"].map("{:.0f}".format),
        "policy / TRPO": (wide["policy ms"] / trpo["policy ms"]).map("{:.2f}".format),
        "whole update, ms": wide["update ms"].map("{:.0f}".format),
        "update / TRPO": (wide["update ms"] / trpo["update ms"]).map("{:.2f}".format),
        "update / PPO": (wide["update ms"] / ppo["update ms"]).map("{:.2f}".format),
        "env steps/s": wide["env steps per s"].map("{:.0f}".format),
        "steps/s / TRPO": (wide["env steps per s"] / trpo["env steps per s"]).map("{:.2f}".format),
    }
    return markdown(pd.DataFrame(columns, index=wide.index).replace("nan", ""))


def jacobian_table(cost: pd.DataFrame) -> str:
    rows = cost[cost.experiment == "jacobian"].copy()
    rows[["method", "setting"]] = rows.subject.str.split(", ", n=1, expand=True)
    wide = rows.pivot(index="setting", columns="method", values="value")
    wide = wide.loc[rows.setting.drop_duplicates()]
    wide["loop / batched"] = wide["loop"] / wide["batched"]
    return markdown(wide.map("{:.2f}".format))
