import shutil
from pathlib import Path

import pytest

pd = pytest.importorskip("pandas")
pytest.importorskip("sb3_contrib")

from sb3_wng.benchmarks import report  # noqa: E402

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"


def test_the_committed_page_is_what_the_committed_numbers_say():
    assert report.page(FOLDER) == (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("file", "column"), [("update_cost.csv", "value"), ("first_learning.csv", "return")])
def test_a_changed_number_changes_the_page(file, column, tmp_path):
    for csv in FOLDER.glob("*.csv"):
        shutil.copy(csv, tmp_path)
    table = pd.read_csv(tmp_path / file)
    table[column] = 1.5 * table[column] + table.index
    table.to_csv(tmp_path / file, index=False)
    assert report.page(tmp_path) != report.page(FOLDER)
