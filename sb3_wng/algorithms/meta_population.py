"""Several parents that take turns: each with its own parameters and optimiser state."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch as th
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from sb3_wng.algorithms.evolution_policies import EvolutionPolicy


class MetaPopulation(nn.Module):
    """Parents of which one at a time is the algorithm's policy; a module, so that they are saved.

    Parents that have not had a turn come first; then chance decides in proportion to novelty (Conti et al. 2018, eq. 3).

    :param policies: the parents at their start
    """

    def __init__(self, policies: list[EvolutionPolicy]) -> None:
        super().__init__()
        self.parameter_vectors = [all_parameters(policy) for policy in policies]
        self.optimizers = [copy.deepcopy(policy.optimizer.state_dict()) for policy in policies]
        self.embeddings: list[th.Tensor | None] = [None] * len(policies)
        self.latest = 0  # the parent that the policy is between turns

    def choose(self, novelty: nn.Module, random: np.random.Generator) -> int:
        """Whose turn it is.

        :param novelty: scores embeddings (n, d)
        """
        known = [embedding for embedding in self.embeddings if embedding is not None]
        if len(known) < len(self.embeddings):
            return len(known)
        weights = novelty(th.cat(known)).double().numpy()
        total = weights.sum()
        return int(random.choice(len(weights), p=weights / total if total > 0 else None))

    def check_out(self, index: int, policy: EvolutionPolicy) -> None:
        """Make a parent the policy; what was loaded into the policy since the last turn is the latest parent's, or all's at
        first."""
        given = all_parameters(policy)
        if not th.equal(given, self.parameter_vectors[self.latest]):
            is_start = all(embedding is None for embedding in self.embeddings)
            for i in range(len(self.parameter_vectors)) if is_start else [self.latest]:
                self.parameter_vectors[i] = given.clone()
        self._before = given, copy.deepcopy(policy.optimizer.state_dict()), self.latest
        set_parameters(policy, self.parameter_vectors[index])
        policy.optimizer.load_state_dict(copy.deepcopy(self.optimizers[index]))
        self.latest = index  # a model that is saved now has this parent's parameters

    def put_back(self, policy: EvolutionPolicy) -> None:
        """Undo ``check_out``: the parent's turn has come to nothing."""
        vector, optimizer, self.latest = self._before
        set_parameters(policy, vector)
        policy.optimizer.load_state_dict(optimizer)

    def check_in(self, index: int, policy: EvolutionPolicy, embedding: th.Tensor) -> None:
        """Keep the parent as the iteration has changed it, and its behaviour (1, d) before."""
        self.parameter_vectors[index] = all_parameters(policy)
        self.optimizers[index] = copy.deepcopy(policy.optimizer.state_dict())
        self.embeddings[index] = embedding

    def get_extra_state(self) -> dict[str, Any]:
        lists = {"vectors": self.parameter_vectors, "optimizers": self.optimizers, "embeddings": self.embeddings}
        return {**lists, "latest": self.latest}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if len(state["vectors"]) != len(self.parameter_vectors):
            raise ValueError(f"n_parents is {len(state['vectors'])} in the file and cannot be changed")
        self.parameter_vectors = [vector.cpu() for vector in state["vectors"]]
        self.optimizers = list(state["optimizers"])
        self.latest = state["latest"]
        self.embeddings = [None if embedding is None else embedding.cpu() for embedding in state["embeddings"]]


def all_parameters(policy: nn.Module) -> th.Tensor:
    """A copy of all parameters, frozen ones too, which each parent has of its own; shape (p,), on the CPU."""
    return parameters_to_vector(policy.parameters()).detach().cpu().clone()


def set_parameters(policy: EvolutionPolicy, vector: th.Tensor) -> None:
    """The other way round."""
    vector_to_parameters(vector.to(policy.device, copy=True), policy.parameters())  # they will be views of it
