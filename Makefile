.PHONY: format lint type test peers commit-checks

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

peers:
	python tests/peers.py

commit-checks: format lint type test
