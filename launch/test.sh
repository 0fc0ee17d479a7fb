#!/usr/bin/env bash
# Makes .venv, installs rkd_jax with its test extra and runs the tests.
# Arguments go to pytest: `bash launch/test.sh -m slow` runs the slow ones.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/venv.sh
install_into_venv '.[test]'
.venv/bin/python -m pytest "$@"
