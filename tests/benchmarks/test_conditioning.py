"""The surrogate's Hessian is exact, and the page says how conditioning and gain go together."""

import numpy as np
import pytest
import torch

pd = pytest.importorskip("pandas")
pytest.importorskip("pybullet_envs_gymnasium")

from sb3_wng import WNPG  # noqa: E402
from sb3_wng.algorithms.surrogate import surrogate  # noqa: E402
from sb3_wng.benchmarks import conditioning  # noqa: E402
from sb3_wng.benchmarks.conditioning import EXPERIMENT, METRIC, PLAIN, RANDOM, RATIOS  # noqa: E402
from sb3_wng.benchmarks.models import hyperparameter_file  # noqa: E402

TASKS = list(EXPERIMENT.environments)


def test_products_are_those_of_the_dense_hessian_and_eigenvalues_its_own():
    model = WNPG("MlpPolicy", "Pendulum-v1", n_steps=64, policy_kwargs={"net_arch": [4]}, seed=0)
    batch = conditioning.fresh_rollout(model)
    parameters = dict(model.policy.named_parameters())
    names = [name for name, value in parameters.items() if any(value is actor for actor in model.actor_parameters)]
    start = torch.cat([parameters[name].detach().reshape(-1) for name in names])

    def objective(flat):
        pieces = flat.split([parameters[name].numel() for name in names])
        values = {name: piece.view_as(parameters[name]) for name, piece in zip(names, pieces, strict=True)}
        log_prob = torch.func.functional_call(LogProb(model.policy), {f"policy.{k}": v for k, v in values.items()}, (batch,))
        return surrogate(log_prob, batch)

    dense = torch.autograd.functional.hessian(objective, start).double().numpy()
    operator = conditioning.surrogate_hessian(model, batch)
    np.testing.assert_allclose(operator @ np.eye(len(start)), dense, atol=1e-5)
    expected = np.sort(np.abs(np.linalg.eigvalsh((dense + dense.T) / 2)))[::-1]
    np.testing.assert_allclose(conditioning.largest_eigenvalues(operator, 6), expected[:6], rtol=0.01)


class LogProb(torch.nn.Module):
    def __init__(self, policy):
        super().__init__()
        self.policy = policy

    def forward(self, batch):
        return self.policy.get_distribution(batch.observations).log_prob(batch.actions)


def test_every_task_has_settings_of_both_methods():
    for method in EXPERIMENT.methods.values():
        assert set(TASKS) <= set(hyperparameter_file(method.hyperparameters))


def test_a_run_leaves_one_record_and_is_a_run_of_the_study(tmp_path, monkeypatch):
    monkeypatch.setitem(EXPERIMENT.environments, "CartPole-v1", 1024)
    monkeypatch.setattr(conditioning, "N_STEPS", 256)
    monkeypatch.setattr(conditioning, "N_EPISODES", 1)
    for method in (RANDOM, METRIC):
        conditioning.run("CartPole-v1", method, 70, tmp_path / "c.csv")
    random, trained = pd.read_csv(tmp_path / "c.csv").to_dict("records")
    assert 10 < random["return"] < 40
    values = [trained[f"ratio_{i}"] for i in RATIOS]
    assert values == sorted(values)
    assert values[0] >= 1


def write(folder, gain_of, tasks):
    rows = []
    for rank, task in enumerate(tasks):
        rows.append({"algorithm": RANDOM, "environment": task, "seed": 0, "return": 0.0})
        for seed in EXPERIMENT.seeds:
            ratios = {f"ratio_{i}": i ** (1 + rank / 5) for i in RATIOS}
            best = {"algorithm": METRIC, "return": 100.0}, {"algorithm": PLAIN, "return": 100.0 * (1 - gain_of(rank))}
            rows += [{"environment": task, "seed": seed, **ratios, **record} for record in best]
    pd.DataFrame(rows).to_csv(folder / conditioning.CSV, index=False)


@pytest.mark.parametrize(("gain_of", "sign"), [(lambda rank: 0.05 * rank, "1.00"), (lambda rank: 0.5 - 0.05 * rank, "-1.00")])
def test_the_section_says_whether_gains_grow_with_conditioning(gain_of, sign, tmp_path):
    write(tmp_path, gain_of, TASKS)
    text = conditioning.section(tmp_path)
    assert f"over the tasks: {sign} (p = " in text
    table = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert [line.split("|")[1].strip() for line in table] == [conditioning.short(task) for task in reversed(TASKS)]
    assert float(table[0].split("|")[4]) == pytest.approx(gain_of(len(TASKS) - 1), abs=0.01)
    conditioning.draw(tmp_path)
    assert (tmp_path / conditioning.FIGURE).exists()


def test_runs_of_other_seeds_change_nothing_and_make_up_for_nothing(tmp_path):
    write(tmp_path, lambda rank: 0.1, TASKS[:4])
    section = conditioning.section(tmp_path)
    rows = pd.read_csv(tmp_path / conditioning.CSV)
    foreign = rows[(rows.environment == TASKS[0]) & (rows.algorithm == METRIC)].iloc[[0, 0]].assign(seed=1, **{"return": 1e6})
    pd.concat([rows, foreign, rows.iloc[[-1]]]).to_csv(tmp_path / conditioning.CSV, index=False)  # and one of them twice
    assert conditioning.section(tmp_path) == section
    missing = rows.drop(rows.index[(rows.environment == TASKS[0]) & (rows.algorithm == METRIC)][0])
    pd.concat([missing, foreign.iloc[[0]]]).to_csv(tmp_path / conditioning.CSV, index=False)
    assert TASKS[0] not in set(conditioning.complete(tmp_path).environment)


def test_tasks_with_missing_runs_are_left_out(tmp_path):
    write(tmp_path, lambda rank: 0.1, TASKS[:4])
    rows = pd.read_csv(tmp_path / conditioning.CSV)
    rows.iloc[:-1].to_csv(tmp_path / conditioning.CSV, index=False)
    assert set(conditioning.complete(tmp_path).environment) == set(TASKS[:3])
    rows[rows.environment.isin(TASKS[:2])].to_csv(tmp_path / conditioning.CSV, index=False)
    assert conditioning.section(tmp_path) == ""
    conditioning.draw(tmp_path)
    assert not (tmp_path / conditioning.FIGURE).exists()
