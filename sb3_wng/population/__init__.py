"""Agents that are updated jointly: one VecEnv, one matrix of parameters, one direction for each row of it."""

from sb3_wng.population.baselines import LinearBaseline
from sb3_wng.population.directions import PopulationDirection, behavior_repulsion, population_direction
from sb3_wng.population.policies import PopulationPolicy
from sb3_wng.population.population import Population
from sb3_wng.population.schedules import AnnealedCoefficient, AnnealedTemperature, CyclicalTemperature
from sb3_wng.population.svpg import SVPG
from sb3_wng.population.wasserstein import WassersteinPopulation

__all__ = [
    "SVPG",
    "AnnealedCoefficient",
    "AnnealedTemperature",
    "CyclicalTemperature",
    "LinearBaseline",
    "Population",
    "PopulationDirection",
    "PopulationPolicy",
    "WassersteinPopulation",
    "behavior_repulsion",
    "population_direction",
]
