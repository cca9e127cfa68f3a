#!/usr/bin/env bash
# All checks: formatting, lint, types, tests. Arguments go to pytest: run_scripts/test.sh -k splice
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

use_environment dev
cd -- "$root"
PATH=$venv/bin:$PATH

ruff format --check .
ruff check .
mypy
python -m pytest "$@"
