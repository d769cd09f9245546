#!/usr/bin/env bash
# All measurements on a GPU in one command, meant to take eight minutes; writes one JSON.
#
#   benchmarks/gpu.sh [OUT.json] [--device cuda] [--sources 400000]
#
# It makes its own data. With `--device cpu --small` it runs on a laptop in a minute or
# two: the tests do this, so that it works when a GPU is available.
set -euo pipefail
cd "$(dirname "$0")"
python="${PYTHON:-$([ -x ../.venv/bin/python ] && echo ../.venv/bin/python || echo python3)}"
exec "$python" gpu.py "$@"
