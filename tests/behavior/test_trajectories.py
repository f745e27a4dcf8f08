import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_wng.behavior import Trajectories, cut_windows


def starts(*columns):
    return np.array(columns, dtype=bool).T


def test_windows_end_with_the_episode_and_with_the_horizon():
    windows = cut_windows(starts([1, 0, 0, 0, 0, 1, 0]), horizon=3)
    pieces = [row[mask].tolist() for row, mask in zip(windows.index, windows.mask, strict=True)]
    assert pieces == [[0, 1, 2], [3, 4], [5, 6]]


def test_windows_do_not_cross_environments_and_follow_sb3s_order():
    windows = cut_windows(starts([1, 0, 0], [0, 0, 1]), horizon=10)
    pieces = [row[mask].tolist() for row, mask in zip(windows.index, windows.mask, strict=True)]
    assert pieces == [[0, 1, 2], [3, 4], [5]]  # environment-major, as RolloutBuffer.swap_and_flatten


def test_an_episode_that_goes_on_from_the_previous_rollout_starts_a_window():
    assert cut_windows(starts([0, 0, 0, 0]), horizon=4).index.tolist() == [[0, 1, 2, 3]]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 12), st.floats(0, 1), st.integers(0, 2**31 - 1))
def test_every_step_is_in_exactly_one_window(n_steps, n_envs, horizon, probability, seed):
    episode_starts = np.random.default_rng(seed).random((n_steps, n_envs)) < probability
    windows = cut_windows(episode_starts, horizon)
    assert sorted(windows.index[windows.mask].tolist()) == list(range(n_steps * n_envs))
    assert windows.mask.any(dim=1).all()
    assert windows.mask.shape[1] == horizon
    # padding comes at the end only
    assert (windows.mask[:, 1:] <= windows.mask[:, :-1]).all()


def test_gathering_pads_with_zeros_and_sums_over_real_steps_only():
    windows = cut_windows(starts([1, 0, 1]), horizon=2)
    steps = torch.tensor([5.0, 6.0, 7.0])
    assert windows.gather(steps).tolist() == [[5, 6], [7, 0]]
    assert windows.sum(steps).tolist() == [11, 7]


def test_windows_follow_the_steps_to_their_device():
    windows = cut_windows(starts([1, 0, 1]), horizon=2).to(torch.device("meta"))
    assert windows.gather(torch.ones(3, 4, device="meta")).shape == (2, 2, 4)
    assert windows.sum(torch.ones(3, device="meta")).device.type == "meta"


def test_trajectories_iterate_without_their_padding():
    windows = cut_windows(starts([1, 0, 1]), horizon=2)
    trajectories = Trajectories.from_steps(windows, torch.arange(6.0).view(3, 2), torch.ones(3, 1), torch.arange(3.0))
    lengths = [(len(t.observations), len(t.actions), t.rewards.tolist()) for t in trajectories]
    assert lengths == [(2, 2, [0, 1]), (1, 1, [2])]
    assert len(trajectories) == 2


def test_a_horizon_below_one_is_refused():
    with pytest.raises(ValueError, match="embedding_horizon must be >= 1"):
        cut_windows(starts([1, 0]), horizon=0)


def test_starts_are_left_as_they_were():
    given = np.zeros((4, 2), dtype=bool)
    cut_windows(given, 2)
    assert not given.any()
