#!/usr/bin/env bash
# Everything that is asked of a GPU, in one command, meant for eight minutes; writes one JSON.
#
#   benchmarks/gpu.sh [OUT.json] [--device cuda] [--sources 400000]
#
# It builds its data on the spot. With `--device cpu --small` it runs on a laptop in a minute or
# two: that is what the tests do, so that it works on the day when there is a GPU.
set -euo pipefail
cd "$(dirname "$0")"
python="${PYTHON:-$([ -x ../.venv/bin/python ] && echo ../.venv/bin/python || echo python3)}"
exec "$python" gpu.py "$@"
