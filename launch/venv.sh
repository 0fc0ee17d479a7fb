# Sourced by the scripts beside it: a virtual environment in .venv.

# The newest Python that the project supports, of those that work here.
find_python() {
  local candidate
  for candidate in python3.13 python3.12 python3.11 python3 python; do
    if "$candidate" -c 'import sys, venv, ensurepip
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo 'Python 3.11, 3.12 or 3.13 with venv is needed and was not found.' >&2
  echo 'Debian: apt-get install python3-venv. macOS: brew install python@3.13.' >&2
  return 1
}

# install_into_venv REQUIREMENT: an editable install, skipped where nothing changed.
install_into_venv() {
  local python wanted
  if [ ! -x .venv/bin/python ]; then
    python=$(find_python)
    "$python" -m venv .venv
  fi
  wanted="$1 $(cat pyproject.toml | cksum)"
  if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
    echo 'Installing (about a minute; only the first time) ...'
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e "$1"
    echo "$wanted" > .venv/installed
  fi
}
