#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the fuzzers of tests/fuzz; see --help.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

usage() {
  cat <<'TEXT'
usage: scripts/fuzz.sh [SECONDS] [TARGET]...

Builds the fuzzers of tests/fuzz with AddressSanitizer and UndefinedBehaviorSanitizer and runs each,
or each TARGET, for SECONDS (default 60), two at a time. With clang they are libFuzzer's and look for
new ways through the code; without it g++'s mutate the seeds at random.

TARGET is json, safetensors, index, config, gguf or import. An input that breaks a promise is kept in
build/fuzz/finds/TARGET, and the program that it breaks is named with it. What libFuzzer found
interesting stays in build/fuzz/corpus/TARGET and is where the next run begins.
CXX names the compiler to use.
TEXT
}

seconds=60
case "${1-}" in
  -h | --help)
    usage
    exit 0
    ;;
esac
if [[ "${1-}" =~ ^[0-9]+$ ]]; then
  seconds=$1
  shift
fi
all=(json safetensors index config gguf import)
targets=("${@:-${all[@]}}")
for target in "${targets[@]}"; do
  [[ " ${all[*]} " == *" $target "* ]] && continue
  echo "[fuzz] target must be one of ${all[*]} but is '$target'." >&2
  exit 2
done

out=build/fuzz
mkdir -p "$out"

links_a_fuzzer() {
  local code='extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }'
  command -v "$1" >/dev/null &&
    "$1" -x c++ -fsanitize=fuzzer,address,undefined - -o "$out/probe" <<<"$code" 2>/dev/null
}

compiler=${CXX:-clang++}
engine=libfuzzer
if ! links_a_fuzzer "$compiler"; then
  echo "==> $compiler has no libFuzzer (Debian, Ubuntu: sudo apt-get install -y clang libclang-rt-dev;" \
    "Mac: brew install llvm, and CXX=its clang++)." >&2
  # ci.yml installs it: without it this would pass and search for nothing. .ci/run, which sets CI as
  # well, takes what the machine has.
  [[ "${GITHUB_ACTIONS-}" == true ]] && exit 1
  echo "==> The seeds are mutated at random instead." >&2
  engine=mutator
  compiler=${CXX:-g++}
fi
rm -f "$out/probe"

jobs=2
cmake=cmake
[[ -x .venv/bin/cmake ]] && cmake=.venv/bin/cmake
if ! { "$cmake" -S tests/fuzz -B "$out/$engine" "-DCMAKE_CXX_COMPILER=$compiler" &&
  "$cmake" --build "$out/$engine" --parallel "$jobs"; } >"$out/build.log" 2>&1; then
  cat "$out/build.log" >&2
  exit 1
fi

# Stops at what the sanitizers of C++ do not count as errors by themselves; abort() writes the input.
export ASAN_OPTIONS="handle_abort=1:${ASAN_OPTIONS-}"
export UBSAN_OPTIONS="print_stacktrace=1:${UBSAN_OPTIONS-}"

run() {
  local target=$1 log=$out/$1.log
  mkdir -p "$out/corpus/$target" "$out/finds/$target"
  "$out/$engine/fuzz_$target" "-max_total_time=$seconds" -print_final_stats=1 -timeout=10 \
    -rss_limit_mb=4096 "-artifact_prefix=$out/finds/$target/" "$out/corpus/$target" \
    "tests/fuzz/corpus/$target" >"$log" 2>&1
  local status=$? runs
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  if ((status == 0)); then
    echo "$target: ${runs:-?} inputs in $seconds s, no find"
  else
    tail -n 40 "$log" >&2
    echo "$target: FAILED; $out/$engine/fuzz_$target FILE repeats it with a file of" \
      "$out/finds/$target"
  fi
  return $((status != 0))
}

echo "==> $engine, $compiler: ${targets[*]}"
export -f run
export out engine seconds
printf '%s\n' "${targets[@]}" | xargs -P "$jobs" -I '{}' bash -c 'run {}' || exit 1
