import numpy as np
import pytest
import torch

from sb3_wng.behavior import EMBEDDINGS, PerTrajectory, Trajectories, make_embedding, spread


@pytest.fixture
def trajectories():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    observations = torch.tensor([[[1.0, 0], [0, 1], [0, 1]], [[1.0, 0], [0, 0], [0, 0]]])
    actions = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [0.0], [0.0]]])
    rewards = torch.tensor([[1.0, 10.0, 100.0], [7.0, 0.0, 0.0]])
    return Trajectories(observations, actions, rewards, mask)


@pytest.mark.parametrize(
    ("alias", "expected"),
    [
        ("action_sequence", [[1, 2, 3], [4, 0, 0]]),
        ("final_state", [[0, 1], [1, 0]]),
        ("reward_to_go", [[111, 110, 100], [7, 0, 0]]),
        ("state_sequence", [[1, 0, 0, 1, 0, 1], [1, 0, 0, 0, 0, 0]]),
        ("state_visitation", [[1 / 3, 2 / 3], [1, 0]]),
    ],
)
def test_embedding_of_a_full_and_a_padded_window(alias, expected, trajectories):
    torch.testing.assert_close(make_embedding(alias)(trajectories), torch.tensor(expected, dtype=torch.float32))


def test_padding_changes_no_embedding(trajectories):
    parts = (trajectories.observations, trajectories.actions, trajectories.rewards, trajectories.mask)
    unpadded = Trajectories(*(part[1:, :1] for part in parts))
    for alias in ("final_state", "state_visitation"):
        embedding = make_embedding(alias)
        torch.testing.assert_close(embedding(unpadded), embedding(trajectories)[1:])


def test_only_the_action_sequence_goes_along_the_path(trajectories):
    assert [alias for alias in EMBEDDINGS if make_embedding(alias).is_pathwise] == ["action_sequence"]
    actions = trajectories.actions.clone().requires_grad_()
    points = make_embedding("action_sequence")(
        Trajectories(trajectories.observations, actions, trajectories.rewards, trajectories.mask)
    )
    assert points.requires_grad


def test_a_function_of_one_trajectory_is_applied_to_each_without_padding(trajectories):
    embedding = make_embedding(lambda trajectory: [len(trajectory.rewards), trajectory.rewards.sum()])
    assert embedding(trajectories).tolist() == [[3, 111], [1, 7]]
    assert make_embedding(lambda trajectory: trajectory.rewards.sum())(trajectories).tolist() == [[111], [7]]


def test_an_embedding_object_is_used_as_it_is():
    embedding = PerTrajectory(len)
    assert make_embedding(embedding) is embedding


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda t: t.rewards, "same length for every trajectory"),
        (lambda t: [[1.0]], "same length for every trajectory"),
        (lambda t: float("nan"), "non-finite"),
        (lambda t: [1.0, float("inf")], "non-finite"),
        (lambda t: t, "must return a number or a vector, got Trajectory"),
        (lambda t: [t.observations[0], 1.0], "must return a number or a vector, got list"),
        (lambda t: "a", "must return a number or a vector, got str"),
    ],
)
def test_an_embedding_that_returns_something_else_is_named(result, message, trajectories):
    def my_embedding(trajectory):
        return result(trajectory)

    with pytest.raises(ValueError, match=f"'my_embedding'.*{message}"):
        make_embedding(my_embedding)(trajectories)


@pytest.mark.parametrize("embedding", ["foo", 3, None])
def test_an_unknown_embedding_is_refused_with_the_known_ones(embedding):
    with pytest.raises(ValueError, match=r"action_sequence.*reward_to_go"):
        make_embedding(embedding)


def test_spread_is_half_the_mean_squared_distance_of_two_points():
    points = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0])
    half = 0.5 * torch.pdist(points[:1500]).square().mean().item()
    assert spread(points) == pytest.approx(half, rel=0.1)
    assert spread(points[:1]) == 0


def test_functions_get_trajectories_that_numpy_can_read(trajectories):
    """Whatever device and graph the rollout's tensors are on."""
    attached = Trajectories(
        trajectories.observations.requires_grad_(), trajectories.actions, trajectories.rewards, trajectories.mask
    )
    points = make_embedding(lambda trajectory: np.asarray(trajectory.observations)[-1, 0])(attached)
    assert points.shape == (2, 1)
    attached_points = make_embedding(lambda trajectory: (attached.observations * 2).sum())(attached)
    assert not attached_points.requires_grad


def test_the_final_state_is_where_the_last_step_led_if_that_is_known():
    zeros = torch.zeros(2, 3, 1)
    windows = Trajectories(zeros, zeros, zeros[..., 0], torch.ones(2, 3, dtype=torch.bool), torch.tensor([[5.0], [6.0]]))
    assert make_embedding("final_state")(windows).tolist() == [[5.0], [6.0]]
