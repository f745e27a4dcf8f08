"""Natural-gradient and behaviour-geometry reinforcement learning for Stable-Baselines3."""

from importlib import resources

from sb3_wng import envs
from sb3_wng.algorithms import BGES, BGPG, BGWNES, BGWNPG, ES, NPG, NSRES, PG, WNES, WNPG, ImplicitPolicy, rank_embeddings
from sb3_wng.behavior import BehaviorCallback
from sb3_wng.population import SVPG, WassersteinPopulation

__version__ = resources.files(__name__).joinpath("version.txt").read_text().strip()

__all__ = [
    "BGES",
    "BGPG",
    "BGWNES",
    "BGWNPG",
    "ES",
    "NPG",
    "NSRES",
    "PG",
    "SVPG",
    "WNES",
    "WNPG",
    "BehaviorCallback",
    "ImplicitPolicy",
    "WassersteinPopulation",
    "__version__",
    "envs",
    "rank_embeddings",
]
