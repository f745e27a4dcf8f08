.PHONY: format lint type test peers docs commit-checks

format:
	ruff check --select I --fix .
	ruff format .

lint:
	ruff check .
	ruff format --check .

type:
	mypy

test:
	python -m pytest -n 2

docs:
	python -m sphinx -W -q -E -b html docs docs/_build/html

peers:
	python tests/peers.py

commit-checks: format lint type test
