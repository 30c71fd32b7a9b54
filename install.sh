#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs vLLM Metal into an environment of its own: `install.sh --help`.
#
# Runs from a checkout and piped into bash, with nothing beside it; the bash 3.2 of macOS is enough.
# The new environment is made beside the old one and takes its place only when the doctor finds it
# healthy. All is in functions and the last line calls them: half a download does nothing.
set -euo pipefail

# owner/name on GitHub, or the URL of a mirror with the same layout. Releases carry a copy of this
# script in which the default is filled in.
REPOSITORY=${VLLM_METAL_REPOSITORY:-}
readonly UV_VERSION=0.13.9 OLDEST_UV=0.8 # the first as in requirements/uv.in
readonly DEFAULT_PYTHON=3.12
readonly VLLM_RELEASES=https://github.com/vllm-project/vllm/releases/download
readonly TORCH_BACKEND_SECONDS=600 # to download vLLM's own wheel in

usage() {
  cat <<'HELP'
Usage: install.sh [options]     or: curl -fsSL …/install.sh | bash -s -- [options]

Installs vLLM, MLX and vLLM Metal into ~/.venv-vllm-metal, or into $VLLM_METAL_VENV. In a checkout it
installs the checkout; piped, the latest release. Running it again updates.

  --version V       install release V (also from a checkout)
  --from-source     build this package from the release's source; needs a C++ compiler
  --torch-backend   install vLLM with CPU kernels, so that VLLM_METAL_USE_MLX=0 serves with torch
  --dry-run         print the commands, change nothing
  --uninstall       remove the environment
  -h, --help        print this

Variables: VLLM_METAL_VENV=directory  PYTHON=python3.13 (an interpreter, 3.11 to 3.13; default 3.12,
which uv fetches if need be)  VLLM_METAL_REPOSITORY=owner/name or a mirror's URL
HELP
}

# --- speaking and running ---------------------------------------------------------------------

say() { printf '==> [%d s] %s\n' "$SECONDS" "$*" >&2; }

die() {
  printf 'install.sh: %s\n' "$1" >&2
  shift
  if [ $# -gt 0 ]; then printf '  %s\n' "$@" >&2; fi
  exit 1
}

# Runs a command in a process group of its own, so that a signal to this script ends all of it.
run() {
  if [ "$dry_run" = yes ]; then
    printf '%q ' "$@"
    printf '\n'
    return 0
  fi
  local status=0
  set -m
  "$@" </dev/null &
  child=$!
  set +m
  wait "$child" || status=$?
  child=
  return "$status"
}

# --- arguments --------------------------------------------------------------------------------

parse_arguments() {
  dry_run=no from_source=no torch_backend=no action=install version='' child='' locked=no work=''
  while [ $# -gt 0 ]; do
    case $1 in
      --version)
        [ $# -gt 1 ] || die "--version needs a value, such as --version 0.1.0."
        version=${2#v}
        shift
        ;;
      --version=*) version=${1#--version=} version=${version#v} ;;
      --from-source) from_source=yes ;;
      --torch-backend) torch_backend=yes ;;
      --dry-run) dry_run=yes ;;
      --uninstall) action=uninstall ;;
      -h | --help) action=help ;;
      *) die "unknown option $1" "$(usage)" ;;
    esac
    shift
  done
  if [[ -n $version && ! $version =~ ^[0-9]+(\.[0-9]+)+[a-z0-9.]*$ ]]; then
    die "--version $version is not a version; an example: --version 0.1.0."
  fi
}

# --- the machine ------------------------------------------------------------------------------

check_platform() {
  system=$(uname -s)
  machine=$(uname -m)
  case $system in
    Darwin) check_mac ;;
    Linux) check_linux ;;
    *) die "$system is not supported." "Use macOS on Apple Silicon, or Linux on x86_64 or aarch64." ;;
  esac
  command -v curl >/dev/null || die "curl was not found." "Linux: sudo apt-get install -y curl"
}

check_mac() {
  local release
  if [ "$machine" != arm64 ]; then
    if [ "$(sysctl -n sysctl.proc_translated 2>/dev/null)" = 1 ]; then
      die "this shell runs under Rosetta; MLX needs a native one." \
        "Untick \"Open using Rosetta\" in the information window of your terminal, or put" \
        "\`arch -arm64\` before \`bash\`."
    fi
    die "this Mac has an Intel processor; MLX needs Apple Silicon."
  fi
  release=$(SYSTEM_VERSION_COMPAT=0 sw_vers -productVersion)
  if [ "${release%%.*}" -lt 14 ]; then
    die "macOS $release is too old; MLX needs macOS 14 or later." "softwareupdate --list"
  fi
  wheel_platform='macosx_*_arm64' disk_gib=3
}

check_linux() {
  local libc minor
  case $machine in
    x86_64 | aarch64) ;;
    *) die "Linux on $machine is not supported; x86_64 and aarch64 are." ;;
  esac
  libc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || libc='another C library'
  minor=${libc#glibc 2.}
  if [ "$minor" = "$libc" ] || [ "${minor%%.*}" -lt 35 ]; then
    die "MLX's wheels need glibc 2.35 or later; this system has $libc." \
      "Use Debian 12, Ubuntu 22.04 or later."
  fi
  wheel_platform="manylinux_*_$machine" disk_gib=6
}

# CUDA where an NVIDIA GPU is; MLX's back end is built for CUDA 13, which drivers know from 580 on.
check_cuda() {
  local driver
  cuda=no
  [ "$system" = Linux ] && command -v nvidia-smi >/dev/null || return 0
  driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | sed -n 1p) || return 0
  [[ $driver =~ ^[0-9]+\. ]] || return 0
  if [ "${driver%%.*}" -lt 580 ]; then
    say "The NVIDIA driver $driver is too old for CUDA 13 (580 or later is needed): installing for the CPU."
    return 0
  fi
  cuda=yes disk_gib=$((disk_gib + 4))
}

check_disk() {
  local place free
  for place in "$venv" "${UV_CACHE_DIR:-$HOME/.cache/uv}"; do
    while [ ! -d "$place" ]; do place=$(dirname "$place"); done
    free=$(df -Pk "$place" | sed -n '2s/.* \([0-9][0-9]*\)  *[0-9]*%.*/\1/p') || true
    if [ -n "$free" ] && [ "$((free / 1048576))" -lt "$disk_gib" ]; then
      die "$place has $((free / 1048576)) GiB free; the installation needs $disk_gib GiB." \
        "Free some space (\`uv cache clean\` may help), or set VLLM_METAL_VENV to another disk."
    fi
  done
}

# Only where something must be compiled. On a Mac, `cc` and `git` without the tools open a dialogue.
check_compiler() {
  if [ "$system" = Darwin ]; then
    xcode-select -p >/dev/null 2>&1 ||
      die "the command line tools are needed to build from source." "xcode-select --install"
  elif ! command -v "${CXX:-c++}" >/dev/null && ! command -v g++ >/dev/null; then
    die "a C++ compiler is needed to build from source." "sudo apt-get install -y g++ make"
  fi
}

# --- the environment's place ------------------------------------------------------------------

is_empty() { [ -z "$(ls -A "$1")" ]; }

# Sets venv, and refuses what is not ours to replace.
check_venv() {
  local default=$HOME/.venv-vllm-metal
  venv=${VLLM_METAL_VENV:-$default}
  case $venv in
    *:*) die "VLLM_METAL_VENV=$venv has a colon, which PATH cannot hold." ;;
    /*) ;;
    *) venv=$PWD/$venv ;;
  esac
  while [ "${venv%/}" != "$venv" ]; do venv=${venv%/}; done
  work=$venv.install
  marker=$venv/vllm-metal-install.txt
  if [ -e "$work" ] && [ ! -f "$work/.vllm-metal" ] && ! is_empty "$work"; then
    die "$work has files in it that install.sh did not put there; it is left alone." \
      "Move it away, or set VLLM_METAL_VENV to another place."
  fi
  if [ -L "$venv" ]; then
    die "$venv is a symbolic link." "Set VLLM_METAL_VENV to the directory itself."
  elif [ ! -e "$venv" ]; then
    return 0
  elif [ ! -d "$venv" ]; then
    die "$venv is a file." "Set VLLM_METAL_VENV to another place."
  elif is_empty "$venv" || [ -f "$marker" ]; then
    return 0
  elif [ ! -f "$venv/pyvenv.cfg" ]; then
    die "$venv has files in it and is no Python environment; it is left alone." \
      "Set VLLM_METAL_VENV to another place."
  elif [ "$venv" != "$default" ]; then
    die "$venv is an environment that install.sh did not make; it is left alone." \
      "Remove it yourself, or set VLLM_METAL_VENV to another place."
  fi
}

is_running() { # whether that process is one of a shell, or of anything where there is no ps
  kill -0 "$1" 2>/dev/null && { ! command -v ps >/dev/null || [[ $(ps -o comm= -p "$1") == *sh* ]]; }
}

# A link is made in one step and carries the owner's process number.
take_lock() {
  local owner
  [ "$dry_run" = no ] || return 0
  mkdir -p "$(dirname "$venv")"
  while ! ln -sn "$$" "$work.lock" 2>/dev/null; do
    owner=$(readlink "$work.lock") || die "$work.lock cannot be made: is $(dirname "$venv") writable?"
    if is_running "$owner"; then
      die "another installation into $venv is under way (process $owner)." \
        "Wait for it. If there is none, remove $work.lock."
    fi
    say "Removing what an installation that was killed left behind"
    mv "$work.lock" "$work.lock.$$" 2>/dev/null || continue # another was faster
    if [ "$(readlink "$work.lock.$$")" != "$owner" ]; then mv "$work.lock.$$" "$work.lock"; fi
    rm -f "$work.lock.$$"
  done
  locked=yes
}

# Puts back what a killed or failed installation left, and removes its half-made environment.
restore() {
  if [ -d "$work/old" ] && [ ! -e "$venv" ]; then mv "$work/old" "$venv"; fi
  rm -rf "$work"
}

on_exit() {
  local status=$?
  trap '' INT TERM HUP
  if [ -n "$child" ]; then
    kill -TERM -- "-$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
  fi
  if [ "$locked" = yes ]; then
    restore
    rm -f "$work.lock"
    if [ "$status" != 0 ]; then
      if [ -e "$venv" ]; then
        say "Failed. What was in $venv before is as it was."
      else
        say "Failed. Nothing is left of it."
      fi
    fi
  fi
  exit "$status"
}

# --- releases ---------------------------------------------------------------------------------

download() { # to a file, from a URL, in that many seconds
  run curl -fsSL --retry 3 --retry-max-time "$3" --connect-timeout 20 --max-time "$3" -o "$1" "$2"
}

set_repository() {
  case $REPOSITORY in
    *://*) ;;
    */*) REPOSITORY=https://github.com/$REPOSITORY ;;
    *)
      die "this copy of install.sh does not say which GitHub repository it belongs to." \
        "Take install.sh from a release, or set VLLM_METAL_REPOSITORY=owner/name."
      ;;
  esac
}

# Sets version, of the latest release unless it was given: the page `latest` leads to its tag.
find_version() {
  local url
  [ -z "$version" ] || return 0
  url=$(curl -fsSLI --retry 3 --connect-timeout 20 --max-time 60 -o /dev/null -w '%{url_effective}' \
    "$REPOSITORY/releases/latest") ||
    die "the latest release was not found at $REPOSITORY/releases (curl: $?)." \
      "Check the network (proxies are read from https_proxy), or give --version."
  version=${url##*/tag/v}
  [ "$version" != "$url" ] || die "$REPOSITORY has no release yet." "Install from a checkout: git clone, then ./install.sh"
}

# Sets sums, the release's checksums; empty if it has none, as a tag without a release.
find_sums() {
  local answer
  answer=$(curl -sSL --retry 3 --connect-timeout 20 --max-time 60 -w '\n%{http_code}' \
    "$REPOSITORY/releases/download/v$version/SHA256SUMS") ||
    die "$REPOSITORY cannot be reached (curl: $?)." "Check the network; proxies are read from https_proxy."
  case ${answer##*$'\n'} in
    200) sums=${answer%$'\n'*} ;;
    404) sums='' ;;
    *) die "$REPOSITORY/releases/download/v$version/SHA256SUMS: HTTP status ${answer##*$'\n'}." ;;
  esac
}

# Prints the first file of the release whose name fits one of the patterns.
asset() {
  local pattern sum name
  for pattern in "$@"; do
    while read -r sum name; do
      # shellcheck disable=SC2053
      if [[ ${#sum} -eq 64 && ${name#\*} == $pattern ]]; then
        printf '%s\n' "${name#\*}"
        return 0
      fi
    done <<<"$sums"
  done
  return 1
}

sha256() {
  if command -v shasum >/dev/null; then shasum -a 256 "$1"; else sha256sum "$1"; fi | cut -d ' ' -f 1
}

# Downloads a file of the release; one whose checksum differs ends the installation.
fetch_asset() {
  local file=$work/files/$1 expected found
  download "$file" "$REPOSITORY/releases/download/v$version/$1" 1800 ||
    die "$1 of release $version could not be downloaded."
  [ "$dry_run" = no ] || return 0
  expected=$(awk -v name="$1" '{ sub(/^\*/, "", $2) } $2 == name { print $1; exit }' <<<"$sums")
  found=$(sha256 "$file")
  [ "$found" = "$expected" ] ||
    die "$1 has the checksum $found, but SHA256SUMS of release $version says $expected." "Not installed."
}

# Sets source to the unpacked source of the release: its checked archive, else what GitHub makes of the tag.
fetch_source() {
  local archive
  say "Fetching the source of $version"
  if archive=$(asset "vllm_metal-$version.tar.gz"); then
    fetch_asset "$archive"
  else
    archive=source.tar.gz
    download "$work/files/$archive" "$REPOSITORY/archive/refs/tags/v$version.tar.gz" 1800 ||
      die "neither a release nor a tag v$version was found at $REPOSITORY."
  fi
  source=$work/source
  run mkdir -p "$source"
  run tar -xzf "$work/files/$archive" -C "$source" --strip-components 1 || die "$archive cannot be unpacked."
}

# --- uv and Python ----------------------------------------------------------------------------

is_recent() { # of two versions, whether the first is not older: major and minor count
  [ "$(printf '%s\n%s\n' "$1" "$2" | sort -t . -k 1,1n -k 2,2n | head -n 1)" = "$2" ]
}

find_uv() {
  local candidate found
  for candidate in "${UV:-}" "$(command -v uv || true)" "$venv/bin/uv" "$HOME/.local/bin/uv" /opt/homebrew/bin/uv; do
    if [ ! -x "$candidate" ]; then continue; fi
    found=$("$candidate" --version 2>/dev/null | sed -n 's/^uv \([0-9][0-9]*\.[0-9][0-9]*\).*/\1/p') || true
    if [ -n "$found" ] && is_recent "$found" "$OLDEST_UV"; then
      uv=$candidate
      return 0
    fi
  done
  install_uv
}

# Into the working folder, later into the environment: nothing else of the user's is touched.
install_uv() {
  say "Fetching uv $UV_VERSION, which installs packages"
  uv=$work/uv/uv
  if download "$work/files/uv.sh" "https://astral.sh/uv/$UV_VERSION/install.sh" 120 &&
    run env UV_UNMANAGED_INSTALL="$work/uv" sh "$work/files/uv.sh" --quiet; then
    return 0
  fi
  uv=$work/uv-venv/bin/uv
  # A Mac's python3 opens a dialogue unless the command line tools are there.
  if { [ "$system" = Linux ] || xcode-select -p >/dev/null 2>&1; } && run python3 -m venv "$work/uv-venv" &&
    run "$work/uv-venv/bin/python" -m pip install --quiet "uv==$UV_VERSION"; then
    return 0
  fi
  die "uv could not be fetched." "Install it (https://docs.astral.sh/uv) and run this again."
}

# Sets python: $PYTHON, or 3.12 (uv's own, else the system's), or another version that fits.
find_python() {
  if [ "$dry_run" = yes ] && [ ! -x "$uv" ]; then
    [ -n "${PYTHON:-}" ] || run "$uv" python install --no-bin "$(uvs_python)"
    python=${PYTHON:-$DEFAULT_PYTHON}
  elif [ -n "${PYTHON:-}" ]; then
    python=$("$uv" python find --system "$PYTHON" 2>/dev/null) ||
      die "PYTHON=$PYTHON is no Python interpreter." "Leave it unset to have uv find or fetch Python $DEFAULT_PYTHON."
  elif ! python=$(find_default_python); then
    say "Fetching Python $DEFAULT_PYTHON"
    if run "$uv" python install --no-bin "$(uvs_python)"; then
      python=$(find_default_python) || python=$(uvs_python)
    else
      python=$("$uv" python find --system '>=3.11,<3.14' 2>/dev/null) ||
        die "Python $DEFAULT_PYTHON could not be fetched, and no Python 3.11 to 3.13 is here." \
          "Check the network, or install one and set PYTHON to it."
      say "It could not be fetched: taking $python"
    fi
  fi
  python_tag=${DEFAULT_PYTHON/./}
  if [ -x "$python" ]; then
    python_tag=$("$python" -c 'import sys, sysconfig
print("%d%d" % sys.version_info[:2] + "t" * bool(sysconfig.get_config_var("Py_GIL_DISABLED")))')
  fi
  case $python_tag in
    311 | 312 | 313) ;;
    *) die "$python is Python ${python_tag/3/3.}; 3.11, 3.12 or 3.13 is needed." ;;
  esac
}

find_default_python() {
  local found
  "$uv" python find --managed-python "$(uvs_python)" 2>/dev/null ||
    { found=$("$uv" python find --system "$DEFAULT_PYTHON" 2>/dev/null) && is_native "$found" && printf '%s\n' "$found"; }
}

uvs_python() { # what uv is asked for; a Mac may have uv's Python for Intel too
  if [ "$system" = Darwin ]; then printf 'cpython-%s-macos-aarch64-none\n' "$DEFAULT_PYTHON"; else printf '%s\n' "$DEFAULT_PYTHON"; fi
}

is_native() { # a Mac may have a Python for Intel too
  [ "$system" != Darwin ] || [ "$("$1" -c 'import platform; print(platform.machine())')" = arm64 ]
}

# --- what is installed ------------------------------------------------------------------------

is_checkout() { # whether this script lies in one, and no release was asked for
  local self=${BASH_SOURCE[0]:-}
  [ -z "$version" ] && [ -f "$self" ] && [ -f "$(dirname "$self")/scripts/build_wheels.py" ]
}

# Sets source (a checkout), or version, sums and the names of the release's files; says what must be built.
choose_origin() {
  source='' sums='' wheel='' vllm_wheel='' locks=no
  if is_checkout; then
    source=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    origin="checkout $source"
    return 0
  fi
  set_repository
  find_version
  find_sums
  origin="release $version"
  if [ "$from_source" = no ]; then
    wheel=$(find_wheel) || say "Release $version has no package for this system and Python: building it from source"
  fi
  vllm_wheel=$(asset 'vllm-*+empty-py3-none-any.whl') || true
  if asset serve.txt >/dev/null && asset torch-backend.txt >/dev/null; then locks=yes; fi
}

find_wheel() {
  local prefix=vllm_metal-$version abi3=''
  if [ "$python_tag" -ge 312 ]; then abi3=$prefix-cp312-abi3-$wheel_platform.whl; fi
  asset "$prefix-cp$python_tag-cp$python_tag-$wheel_platform.whl" "$abi3"
}

# What an installation is known by; a checkout may have changed since and is always installed anew.
description() {
  printf '%s, torch-backend %s, cuda %s, from-source %s, Python %s\n' \
    "$origin" "$torch_backend" "$cuda" "$from_source" "$python_tag"
}

is_up_to_date() {
  [ -z "$source" ] && [ -f "$marker" ] && [ "$(cat "$marker")" = "$(description)" ] &&
    "$venv/bin/vllm-metal" doctor >/dev/null 2>&1 </dev/null
}

make_environment() {
  say "Making an environment with $python"
  run "$uv" venv --quiet --relocatable --python "$python" "$stage"
  if [ "$dry_run" = no ] && ! is_native "$stage/bin/python"; then
    die "$python is built for Intel; MLX needs a native one." "Leave PYTHON unset to have uv fetch one."
  fi
}

install_locked() {
  local requirements=$work/files
  if [ -n "$source" ]; then requirements=$source/requirements; else
    fetch_asset serve.txt
    fetch_asset torch-backend.txt
  fi
  say "Installing the locked packages (2.5 GB to download on Linux, less on a Mac)"
  run "$uv" pip sync --python "$stage/bin/python" --require-hashes "$requirements/serve.txt"
  if [ "$torch_backend" = yes ]; then # vLLM's CPU platform imports it
    run "$uv" pip install --quiet --python "$stage/bin/python" --only-binary :all: \
      --constraint "$requirements/torch-backend.txt" numba
  fi
  if [ "$cuda" = yes ]; then install_cuda "$requirements/serve.txt"; fi
}

# MLX's back ends for the CPU and for CUDA hold a library of the same name: one must go first.
install_cuda() {
  local mlx='mlx[cuda13]'
  if [ -f "$1" ]; then mlx=$(sed -n 's/^mlx==\([^ ]*\).*/mlx[cuda13]==\1/p' "$1"); fi
  say "Installing MLX's CUDA back end"
  run "$uv" pip uninstall --quiet --python "$stage/bin/python" mlx-cpu
  run "$uv" pip install --quiet --python "$stage/bin/python" --only-binary :all: "$mlx"
}

build() { # of the source's packages, into the folder of wheels
  run "$stage/bin/python" "$source/scripts/build_wheels.py" --out "$wheels" "$@"
}

get_wheels() {
  if [ -n "$wheel" ]; then
    fetch_asset "$wheel"
    run mv "$work/files/$wheel" "$wheels/"
  else
    say "Building vLLM Metal (C++; about ten minutes on two cores)"
    build vllm-metal
  fi
  if [ "$torch_backend" = yes ]; then
    get_torch_backend
  elif [ -n "$vllm_wheel" ]; then
    say "Fetching vLLM"
    fetch_asset "$vllm_wheel"
    run mv "$work/files/$vllm_wheel" "$wheels/"
  else
    say "Building vLLM without device code"
    build vllm
  fi
}

# vLLM's own build with CPU kernels if its release has one for this system, else its source.
get_torch_backend() {
  local number name
  number=$(vllm_version)
  case $system-$machine in
    Darwin-*) name="vllm-$number+cpu-cp$python_tag-cp$python_tag-macosx_11_0_arm64.whl" ;;
    *) name="vllm-$number+cpu-cp38-abi3-manylinux_2_35_$machine.whl" ;;
  esac
  say "Fetching vLLM's build with CPU kernels (at most $TORCH_BACKEND_SECONDS s)"
  if ! download "$wheels/$name" "$VLLM_RELEASES/v$number/${name//+/%2B}" "$TORCH_BACKEND_SECONDS"; then
    run rm -f "$wheels/$name"
    say "vLLM $number has no such build: compiling it, which takes from ten minutes to an hour"
    check_compiler
    [ -n "$source" ] || fetch_source
    build vllm-cpu
  fi
}

vllm_version() {
  local number=${vllm_wheel#vllm-}
  if [ -n "$source" ] && [ -f "$source/requirements/vllm.txt" ]; then
    sed -n 's/^vllm==\([^ ]*\).*/\1/p' "$source/requirements/vllm.txt"
  else
    printf '%s\n' "${number%%+*}"
  fi
}

install_wheels() {
  if [ "$dry_run" = yes ]; then set -- "$wheels/*.whl"; else set -- "$wheels"/*.whl; fi
  say "Installing vLLM and vLLM Metal"
  run "$uv" pip install --quiet --python "$stage/bin/python" --no-deps "$@"
  case $uv in "$work"/* | "$venv"/*) run cp "$uv" "$stage/bin/uv" ;; esac # its own, and removed with it
}

# The environment is about to be moved: nothing in it may name the place in which it was made.
check_relocatable() {
  local named
  [ "$dry_run" = no ] || return 0
  if named=$(grep -rlF -- "$stage" "$stage/bin" "$stage/pyvenv.cfg"); then
    die "these files name the folder that the environment was made in: $named" "Please report this."
  fi
}

take_place() {
  say "Moving it to $venv"
  if [ "$dry_run" = no ]; then description >"$stage/vllm-metal-install.txt"; fi
  trap '' INT TERM HUP
  if [ -e "$venv" ]; then run mv "$venv" "$work/old"; fi
  run mv "$stage" "$venv"
  run rm -rf "$work"
  trap on_signal INT TERM HUP
}

on_signal() {
  printf '\n' >&2
  say "Interrupted"
  exit 130
}

# --- the whole --------------------------------------------------------------------------------

install() {
  check_platform
  check_venv
  check_cuda
  check_disk
  if [ "$from_source" = yes ] || is_checkout; then check_compiler; fi # before anything is fetched
  take_lock
  [ "$dry_run" = yes ] || restore
  stage=$work/new wheels=$work/wheels
  run mkdir -p "$work"
  run touch "$work/.vllm-metal" # ours to remove
  run mkdir -p "$work/files" "$wheels"
  find_uv
  find_python
  choose_origin
  if is_up_to_date; then
    say "$origin is installed in $venv already, and healthy. To install it anew: rm -rf $(printf %q "$venv")"
    return 0
  fi
  say "Installing $origin into $venv"
  [ -n "$wheel" ] || check_compiler
  if [ -z "$source" ] && { [ -z "$wheel" ] || [ -z "$vllm_wheel" ] || [ "$locks" = no ]; }; then
    fetch_source
  fi
  make_environment
  [ -n "$wheel" ] || build --check
  install_locked
  get_wheels
  install_wheels
  check_relocatable
  say "Asking the doctor"
  run "$stage/bin/vllm-metal" doctor ||
    die "vllm-metal doctor is not content with the new environment; see above."
  take_place
  next_steps
}

next_steps() {
  [ "$dry_run" = no ] || return 0
  printf '\nvLLM Metal is installed. Next:\n\n  source %q/bin/activate\n' "$venv"
  cat <<'NEXT'
  vllm-metal selftest     # some minutes: whether this machine computes correctly
  vllm serve "$(python -m vllm_metal.default_model)" --host 127.0.0.1     # any model; this one has 93 MB

Run this script again to update, with --uninstall to remove it.
NEXT
}

uninstall() {
  check_venv
  if [ ! -e "$venv" ] && [ ! -e "$work" ]; then
    say "Nothing is installed in $venv."
    return 0
  fi
  take_lock
  run rm -rf "$work" "$venv"
  say "Removed $venv. Models stay in the caches of vllm-metal and huggingface, packages in uv's (uv cache clean)."
}

main() {
  parse_arguments "$@"
  # What points at other environments, and what belongs to building vLLM only.
  unset PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX UV_PYTHON UV_SYSTEM_PYTHON UV_CONSTRAINT UV_OVERRIDE VLLM_TARGET_DEVICE
  trap on_exit EXIT
  trap on_signal INT TERM HUP
  case $action in
    help) usage ;;
    *) "$action" ;;
  esac
}

main "$@"
