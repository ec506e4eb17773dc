#!/usr/bin/env bash
# Makes .venv with the pinned packages, then fetches the course's files. Running it again does only what is missing.
#
#   bash setup.sh              everything that running needs
#   bash setup.sh --dev        also the tools of `make test` and `make lint`
#   bash setup.sh --from DIR   copies the course's files from DIR instead of fetching them
#   bash setup.sh --offline    does not fetch them
#
# PYTHON names the interpreter to use (default: the first of python3, python3.13 … that is 3.11 or later).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

die() { echo "setup.sh: $*" >&2; exit 2; }

dev=false
course_flags=()
while (($#)); do
  case $1 in
    --dev) dev=true ;;
    --offline) course_flags+=(--offline) ;;
    --from)
      (($# > 1)) || die "--from needs a folder"
      [[ -d $2 ]] || die "no such folder: $2"
      course_flags+=(--from "$2")
      shift ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) die "unknown flag $1; see bash setup.sh --help" ;;
  esac
  shift
done

modern() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

usable() { modern "$1" && "$1" -m pip --version >/dev/null 2>&1; }  # an interrupted set-up leaves a .venv without pip

find_python() {
  local candidate
  for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 .venv/bin/python; do
    if modern "$candidate"; then echo "$candidate"; return; fi
  done
  die "Python 3.11 or later is needed; name one with PYTHON=/path/to/python bash setup.sh"
}

# Prints the size of .venv every few seconds while pip runs: torch is large, and pip hides its progress without a terminal.
show_size() {
  while sleep 5 && kill -0 $$ 2>/dev/null; do  # ends with this script, however it ends
    echo "  $(du -sm .venv "${TMPDIR:-/tmp}"/pip-* 2>/dev/null | awk '{sum += $1} END {print sum}') MB so far ..."
  done
}

# Installs a requirements file unless the copy kept in .venv says that this very file was installed before.
install() {
  local kept=".venv/installed-$1" progress status=0
  cmp -s "$1" "$kept" && return
  echo "installing $1 ..."
  show_size 9>&- & progress=$!
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1" || status=$?
  kill "$progress" 2>/dev/null; wait "$progress" 2>/dev/null || true
  ((status == 0)) || die "pip could not install $1; the lines above say why"
  cp "$1" "$kept"
}

python=$(find_python)
exec 9>.setup.lock  # held by this shell until it ends, however it ends; the Python only takes the lock for it
lock() { "$python" -c "import fcntl; fcntl.flock(9, fcntl.LOCK_EX $1)" 2>/dev/null; }
lock "| fcntl.LOCK_NB" || { echo "another set-up works here: waiting for it"; lock "" || true; }

if ! usable .venv/bin/python; then
  echo "making .venv with $("$python" --version)"
  "$python" -m venv --clear .venv || die "$python cannot make a virtual environment (on Debian: install python3-venv)"
fi
install requirements.txt
if $dev; then install requirements-dev.txt; fi
.venv/bin/python -m tasks.course_files ${course_flags[@]+"${course_flags[@]}"}
touch .venv/ready
if $dev; then touch .venv/ready-dev; fi
