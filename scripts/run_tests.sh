#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the built tests: run_tests.sh [all|fast]. All kinds run even if one fails. Those end to end
# run beside the others, in two halves of about the same length, since all wait for servers and
# imports much of the time; what they print comes at the end.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

build=build/release
python=.venv/bin/python
result=0
e2e=()

# An interrupted pytest stops its servers.
trap '((${#e2e[@]} == 0)) || kill -INT "${e2e[@]}" 2>/dev/null' EXIT

case ${1-all} in
  all)
    others=(--ignore=tests/e2e)
    second="paged or test_soak or test_torch_backend or test_modelscope_server"
    "$python" -m pytest tests/e2e -k "not ($second)" >build/e2e_1.log 2>&1 &
    e2e+=("$!")
    "$python" -m pytest tests/e2e -k "$second" >build/e2e_2.log 2>&1 &
    e2e+=("$!")
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
if ((${#e2e[@]} > 0)); then
  echo "==> end to end, until now in build/e2e_1.log and build/e2e_2.log"
  for process in "${e2e[@]}"; do
    wait "$process" || result=1
  done
  e2e=()
  cat build/e2e_1.log build/e2e_2.log
fi
exit "$result"
