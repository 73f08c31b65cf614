#!/usr/bin/env bash
# Families x behaviours: what holds on which architecture. With --peft the same for PEFT, side by side.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh dev
exec .venv/bin/python tests/conformance/table.py "$@"
