"""Algorithms as Stable-Baselines3 users know them: one base class owns the loop, named ones fill its slots."""

from sb3_wng.algorithms.bges import BGES
from sb3_wng.algorithms.bgpg import BGPG
from sb3_wng.algorithms.bgwnes import BGWNES
from sb3_wng.algorithms.bgwnpg import BGWNPG
from sb3_wng.algorithms.es import ES
from sb3_wng.algorithms.evolution import EvolutionStrategy
from sb3_wng.algorithms.evolution_policies import EvolutionPolicy, ImplicitPolicy
from sb3_wng.algorithms.npg import NPG
from sb3_wng.algorithms.nsres import NSRES
from sb3_wng.algorithms.pg import PG
from sb3_wng.algorithms.policy_gradient import NaturalPolicyGradient
from sb3_wng.algorithms.ranking import EmbeddingRank, format_table, rank_embeddings
from sb3_wng.algorithms.wnes import WNES
from sb3_wng.algorithms.wnpg import WNPG

__all__ = [
    "BGES",
    "BGPG",
    "BGWNES",
    "BGWNPG",
    "ES",
    "NPG",
    "NSRES",
    "PG",
    "WNES",
    "WNPG",
    "EmbeddingRank",
    "EvolutionPolicy",
    "EvolutionStrategy",
    "ImplicitPolicy",
    "NaturalPolicyGradient",
    "format_table",
    "rank_embeddings",
]
