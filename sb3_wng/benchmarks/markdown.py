"""Tables and numbers as Markdown."""

from __future__ import annotations

import pandas as pd


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table whose first column is the index."""
    rows = [["", *table.columns], ["---"] * (len(table.columns) + 1), *([name, *row] for name, *row in table.itertuples())]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def number(value: float) -> str:
    """Whole numbers for large values, one decimal for middling ones, two digits for small ones."""
    if pd.isna(value):
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}" if abs(value) < 1 else f"{value:.1f}"
