"""The benchmark page's section on the Gaussian toy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from sb3_wng.benchmarks.gaussian_toy import PARAMETERIZATIONS, PENALTY, RATE
from sb3_wng.benchmarks.markdown import markdown

CSV = "gaussian_toy.csv"
FIGURE = "gaussian_toy.png"
SECTION = """## The Gaussian toy (Fig. 1)

`python -m sb3_wng.benchmarks run gaussian_toy`: descent of the expected sum of 1 - sinc(x) over 100-dimensional Gaussians
with diagonal covariance. The optimum is a point mass. Exact gradients in float64; rate {rate}, penalty {penalty}, {last}
iterations. The start is mean 2 N(0, 1) (one draw) and a spread of 2 in every dimension; mean and spread move at the same time;
variances are kept at or above 1e-200 and means below 1e-100 count as 0; a penalised method takes ten gradient steps from each
reference. The paper leaves these choices open, and the results depend on them.

Loss per dimension at the end, and the first recorded iteration at which it is below 1e-4 and 1e-8 (empty: never). The paper
reports errors of 1e-8 for the Wasserstein gradient (WNG), 1e-4 for the Fisher gradient (FNG), and about 1 (log) and 1e-6
(diagonal) for the W2 penalty.

{table}

- In the log form WNG passes FNG at iteration {crossing}, and ends at {wng} (the clamp is at 1.7e-201). FNG ends at {fng}, and
  the plain gradient (SGD) at {sgd}.
- In the diagonal form SGD ends at {sgd_diagonal}: no geometry, but projection. Its steps overshoot a variance of zero and
  land on the clamp, which is the optimum here. With the W2 penalty, whose slope is infinite at zero spread, it ends at
  {w2_diagonal}.
- Of the rates from {slowest} to {fastest}, these end below 1e-8: for WNG {wng_rates}; for FNG {fng_rates}; for SGD
  {sgd_rates}.

![Loss and paths by iteration, and losses at the end by rate and by penalty; what overflowed is missing]({figure})
"""


def section(folder: Path) -> str:
    """Text and tables; the empty text while there are no numbers."""
    if not (folder / CSV).exists():
        return ""
    rows = pd.read_csv(folder / CSV)
    curves = rows[rows.panel == "curve"]
    sweep = rows[rows.panel == "rate"]
    losses = curves.pivot(index="iteration", columns=["parameterization", "algorithm"], values="loss")
    end = losses.iloc[-1].map(power)
    ahead = losses["log", "WNG"] < losses["log", "FNG"]
    return SECTION.format(
        rate=f"{RATE:g}",
        penalty=f"{PENALTY:g}",
        last=losses.index[-1],
        table=markdown(_table(losses)),
        crossing=_last_crossing(ahead),
        wng=end["log", "WNG"],
        fng=end["log", "FNG"],
        sgd=end["log", "SGD"],
        sgd_diagonal=end["diagonal", "SGD"],
        w2_diagonal=end["diagonal", "W2 penalty"],
        slowest=f"{sweep.rate.min():g}",
        fastest=f"{sweep.rate.max():g}",
        **{f"{name.lower()}_rates": _good_rates(sweep[sweep.algorithm == name]) for name in ("WNG", "FNG", "SGD")},
        figure=FIGURE,
    )


def power(value: float) -> str:
    return "overflow" if np.isnan(value) else f"{value:.1e}"


def _table(losses: pd.DataFrame) -> pd.DataFrame:
    columns = {}
    for parameterization in PARAMETERIZATIONS:
        chosen = losses[parameterization]
        columns[f"{parameterization}, end"] = chosen.iloc[-1].map(power)
        for bound in (1e-4, 1e-8):
            below = chosen < bound
            first = below.idxmax().where(below.any()).map(lambda value: "" if pd.isna(value) else f"{value:.0f}")
            columns[f"{parameterization}, < {bound:.0e}"] = first
    return pd.DataFrame(columns)


def _last_crossing(ahead: pd.Series) -> int | str:
    """The recorded iteration from which on the series is true."""
    behind = ahead.index[~ahead]
    later = ahead.index if behind.empty else ahead.index[ahead.index > behind[-1]]
    return "(never)" if later.empty else int(later[0])


def _good_rates(sweep: pd.DataFrame) -> str:
    texts = []
    for parameterization in PARAMETERIZATIONS:
        chosen = sweep[sweep.parameterization == parameterization]
        good = chosen[chosen.loss < 1e-8].rate
        listed = "all" if len(good) == len(chosen) else ", ".join(f"{rate:g}" for rate in sorted(good)) or "none"
        texts.append(f"{listed} ({parameterization})")
    return ", ".join(texts)
