"""What all tests share."""

import os

# pytest-xdist fills the cores, and small networks are slower on several threads; for processes that tests start, too
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from stable_baselines3.common.logger import configure


@pytest.fixture
def fill():
    """Collect one rollout, as ``learn`` would, and leave the model ready for ``train()``."""

    def collect(model):
        _, callback = model._setup_learn(model.n_steps * model.n_envs)
        model.set_logger(configure(None, []))
        assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        return model

    return collect
