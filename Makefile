.PHONY: install test lint format types layers ci bench schema
install: ; python3 -m venv .venv && .venv/bin/pip install -e '.[dev]'
test: ; .venv/bin/pytest
lint: ; .venv/bin/ruff check . && .venv/bin/ruff format --check .
format: ; .venv/bin/ruff check --fix . && .venv/bin/ruff format .
types: ; .venv/bin/mypy -p smartipc && .venv/bin/pyright
layers: ; .venv/bin/lint-imports
ci: ; bash .ci/run
bench: ; for b in roundtrip throughput spawn restart; do .venv/bin/python benchmarks/$$b.py; done
schema: ; .venv/bin/python -W ignore -m smartipc.supervisor.configuration.schema > config/workers.schema.json
