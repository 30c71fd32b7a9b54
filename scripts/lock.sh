#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Resolves requirements/*.in for Linux and macOS, Python 3.11 to 3.13, into hashed lock files.
# Upgrade everything: scripts/lock.sh --upgrade. requirements/vllm.txt is kept by hand.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../requirements"

compile() {
  local name=$1 python=$2
  shift 2
  uv pip compile --quiet --universal --python-version "$python" --generate-hashes --no-annotate \
    --custom-compile-command "make lock" "$name.in" --output-file "$name.txt" "$@"
}

# torch's metadata asks for packages that nothing here loads.
compile serve 3.11 --excludes excludes.txt "$@"
compile dev 3.11 "$@"
compile uv 3.9 "$@"
compile llama-cpp 3.11 "$@"
compile macos 3.11 "$@"
compile torch-backend 3.11 --overrides torch-backend-overrides.txt --excludes excludes.txt \
  --excludes torch-backend-excludes.txt "$@"
