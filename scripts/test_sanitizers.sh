#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the C++ tests with sanitizers and runs them: test_sanitizers.sh [asan|ubsan|tsan]...
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
export PATH="$PWD/.venv/bin:$PATH"
# Tests fork while the pool has threads; the children need some of their own. Others ask for more
# memory than there is.
# Stacks that are kept after a return are aligned too little for AVX-512 by GCC 13 (its bug 110027).
export ASAN_OPTIONS="allocator_may_return_null=1:detect_stack_use_after_return=0"
export TSAN_OPTIONS="suppressions=$PWD/tests/tsan.supp:die_after_fork=0:allocator_may_return_null=1"
export UBSAN_OPTIONS="print_stacktrace=1"

launcher=()
command -v ccache >/dev/null && launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
# The thread sanitizer's shadow memory does not fit around addresses that are too random.
fixed_addresses=()
setarch "$(uname -m)" -R true 2>/dev/null && fixed_addresses=(setarch "$(uname -m)" -R)

result=0
for preset in "${@:-asan}"; do
  # The bash of macOS takes an empty array for an unset variable.
  cmake --preset "$preset" ${launcher[@]+"${launcher[@]}"} &&
    cmake --build "build/$preset" &&
    ${fixed_addresses[@]+"${fixed_addresses[@]}"} ctest --test-dir "build/$preset" --output-on-failure || result=1
done
exit "$result"
