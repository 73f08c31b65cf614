#!/usr/bin/env bash
# The whole check, the same as CI's: set-up, format, lint, types, tests with coverage.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh dev

export HF_HUB_OFFLINE=1
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
if [ $# -eq 0 ]; then
    .venv/bin/python -m pytest --cov --cov-report=term
else # some of the tests cannot cover the whole
    .venv/bin/python -m pytest "$@"
fi
