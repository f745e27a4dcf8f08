"""Studies without their extra."""

import importlib
import importlib.util
import sys

import pytest

from sb3_wng import benchmarks


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pandas" else find_spec(name))
    monkeypatch.delitem(sys.modules, benchmarks.__name__)
    with pytest.raises(ModuleNotFoundError, match=r"pandas is not installed.*pip install 'sb3-wng\[benchmarks\]'"):
        importlib.import_module(benchmarks.__name__)
