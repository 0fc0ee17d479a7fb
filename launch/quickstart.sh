#!/usr/bin/env bash
# Makes .venv, installs rkd_jax and distils robust students of handwritten digits.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/venv.sh
install_into_venv .
.venv/bin/rkd quickstart "$@"
