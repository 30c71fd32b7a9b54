#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the built tests: run_tests.sh [all|fast]. All kinds run even if one fails. Those end to end
# run beside the others, since both wait for servers and imports much of the time; what they print
# comes at the end.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

build=build/release
log=build/e2e.log
python=.venv/bin/python
result=0
e2e=

# An interrupted pytest stops its servers.
trap '[[ -z $e2e ]] || kill -INT "$e2e" 2>/dev/null' EXIT

case ${1-all} in
  all)
    others=(--ignore=tests/e2e)
    "$python" -m pytest tests/e2e >"$log" 2>&1 &
    e2e=$!
    ;;
  fast) others=(-m "not slow") ;;
  *)
    echo "usage: scripts/run_tests.sh [all|fast]" >&2
    exit 2
    ;;
esac

.venv/bin/ctest --test-dir "$build" --parallel "$(getconf _NPROCESSORS_ONLN)" --output-on-failure ||
  result=1
"$python" -m pytest "${others[@]}" || result=1
if [[ -n $e2e ]]; then
  echo "==> end to end, until now in $log"
  wait "$e2e" || result=1
  e2e=
  cat "$log"
fi
exit "$result"
