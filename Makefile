.PHONY: install test lint format types layers ci bench bench-peers fuzz schema
install: ; python3 -m venv .venv && .venv/bin/pip install -e '.[dev]'
test: ; .venv/bin/pytest
lint: ; .venv/bin/ruff check . && .venv/bin/ruff format --check .
format: ; .venv/bin/ruff check --fix . && .venv/bin/ruff format .
types: ; .venv/bin/mypy -p smartipc && .venv/bin/pyright
layers: ; .venv/bin/lint-imports
ci: ; bash .ci/run
bench: ; .venv/bin/python benchmarks/messages.py --json benchmarks/messages.json && for b in spawn restart steady; do .venv/bin/python benchmarks/$$b.py; done
bench-peers: ; .venv/bin/pip install -e ".[bench]" && npm install --no-audit --no-fund --prefix $${SMARTIPC_BENCH_NODE:-$$HOME/.cache/smartipc-bench-node} node-ipc@12 pm2
fuzz: ; for one in fuzz/*.py; do .venv/bin/python $$one 60 || exit 1; done
schema: ; .venv/bin/python -W ignore -m smartipc.supervisor.configuration.schema > config/workers.schema.json
