import shutil
from pathlib import Path

import pytest

pd = pytest.importorskip("pandas")

from sb3_wng.benchmarks import embedding_ranks  # noqa: E402

DOCS = Path(__file__).parents[2] / "docs"
CSV = DOCS / "benchmarks" / "embedding_ranks.csv"


def test_the_committed_page_is_what_the_committed_numbers_say():
    assert embedding_ranks.page(CSV) == (DOCS / "guide" / "embeddings.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("column", ["held_out_gain", "noise", "own_gain", "effective_rank", "milliseconds"])
def test_a_changed_number_changes_the_page(column, tmp_path):
    shutil.copy(CSV, tmp_path)
    table = pd.read_csv(tmp_path / CSV.name)
    table[column] = -1.5 * table[column] + 1
    table.to_csv(tmp_path / CSV.name, index=False)
    assert embedding_ranks.page(tmp_path / CSV.name) != embedding_ranks.page(CSV)


def test_a_small_measurement_has_every_column_and_is_not_repeated(tmp_path, monkeypatch):
    small = {"TASKS": ("CartPole-v1",), "STAGES": (1024,), "N_STEPS": 128, "N_BASIS": 4, "COST_BASES": (3,)}
    for name, value in small.items():
        monkeypatch.setattr(embedding_ranks, name, value)
    shipped = embedding_ranks.shipped_hyperparameters
    monkeypatch.setattr(embedding_ranks, "shipped_hyperparameters", lambda *args: {"target_kl": 0.03, **shipped(*args)})
    path = tmp_path / "ranks.csv"
    embedding_ranks.measure(path, repeats=1)
    rows = pd.read_csv(path)
    assert rows.experiment.value_counts().to_dict() == {"rank": 9, "cost": 9}
    assert rows[rows.experiment == "rank"][["action_gain", "held_out_gain", "own_gain", "damping"]].notna().all(axis=None)
    assert (rows[rows.experiment == "cost"].milliseconds > 0).all()
    before = path.read_bytes()
    embedding_ranks.measure(path, repeats=1)
    assert path.read_bytes() == before
