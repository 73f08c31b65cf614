#!/usr/bin/env bash
# The whole check, the same as CI's: set-up, format, lint, types, tests with coverage.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh dev

if ! command -v chromium >/dev/null; then # the report's page is opened in it; without it those tests are skipped
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } >/dev/null ||
        echo "== No chromium: install it with your system's package manager to run the tests of the report's page"
fi

export HF_HUB_OFFLINE=1
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
if [ $# -eq 0 ]; then
    # Two processes, each with a core of its own: torch's threads would stand in each other's way.
    OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses 2 --dist loadfile --cov --cov-report=term
    # Numbers again without this machine's vector instructions: nothing may hang on one machine's rounding.
    ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 .venv/bin/python -m pytest -m "not real_model" \
        -k "not large_vocabulary and not thousand and not whole_rows" tests/forward tests/model/kernels tests/inspection/vocabulary \
        tests/inspection/measures/test_nearest_tokens.py
else # some of the tests cannot cover the whole
    .venv/bin/python -m pytest "$@"
fi
