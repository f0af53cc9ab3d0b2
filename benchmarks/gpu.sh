#!/usr/bin/env bash
# Ten minutes on one GPU: the tests marked `gpu`, and the benchmarks. Nothing is installed; `python` is the one in
# PYTHON, in .venv, or on the path. MagicMaster's own models take part where SMALTI_MAGICMASTER names a checkout of it.
#
#     SMALTI_MAGICMASTER=folder bash benchmarks/gpu.sh [--device cpu --tiny --out row.json]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
export PYTHONPATH=src:.${PYTHONPATH:+:$PYTHONPATH}
wanted="torch numpy PIL av safetensors huggingface_hub pydantic yaml typer rich filelock jaxtyping"
missing=$("$python" - $wanted <<'END'
import importlib.util, sys
print(*[name for name in sys.argv[1:] if importlib.util.find_spec(name) is None])
END
)
if [ -n "$missing" ]; then
    echo "$python lacks: $missing. Give a Python that has smalti's dependencies as PYTHON; nothing was measured." >&2
    exit 3
fi
exec timeout --kill-after=10 600 "$python" -m benchmarks.gpu "$@"
