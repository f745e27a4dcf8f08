"""Where our hyperparameters for RL-Zoo are."""

import importlib.resources
from pathlib import Path


def hyperparams_folder() -> Path:
    """Beside this file's package in a checkout, or inside of the installed one."""
    beside = Path(__file__).resolve().parents[1] / "zoo_hyperparams"  # first: another checkout may be the installed one
    return beside if (beside / "wnpg.yml").exists() else Path(str(importlib.resources.files("sb3_wng.zoo_hyperparams")))
