"""Measurements that others can repeat: each module is a command that writes a tidy CSV with versions."""

from importlib.util import find_spec

for _name in ("filelock", "matplotlib", "pandas", "rl_zoo3", "scipy", "yaml"):
    if find_spec(_name) is None:
        raise ModuleNotFoundError(
            f"{_name} is not installed, which studies need: pip install 'sb3-wng[benchmarks]'", name=_name
        )
