# shellcheck shell=bash
# Sourced by deploy/up and deploy/test, in the repository's root: makes .venv and installs into it.

# shellcheck disable=SC2034  # read by those who source this
UP_EXTRAS=api,worker,local
TORCH_VERSION=2.13.0
TORCH_INDEX=https://download.pytorch.org/whl/
TORCH_INDEX_PATIENCE_SECONDS=4
PYTHON_CANDIDATES=(python3 python3.14 python3.13 python3.12 python3.11)

say() { printf '%s\n' "$*"; }
fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

is_running() { [[ -x .venv/bin/python ]] && .venv/bin/python -m deploy.local running; }

# The line that installs system packages, as this user has to type it.
apt_line() {
    local sudo=""
    [[ $(id -u) == 0 ]] || sudo="sudo "
    printf '%sapt-get update && %sapt-get install -y %s' "$sudo" "$sudo" "$*"
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} "${PYTHON_CANDIDATES[@]}"; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s' "$candidate"
            return
        fi
    done
    fail "inpaintd needs Python 3.11 or newer, and none was found. On Debian and Ubuntu:
  $(apt_line python3 python3-venv)
(Ubuntu 22.04: $(apt_line python3.11 python3.11-venv)). PYTHON=/path/to/python3 names one elsewhere."
}

make_venv() {
    local python package
    # A half-made .venv has no working pip: making it again repairs it.
    if [[ -x .venv/bin/python ]] && .venv/bin/python -m pip --version >/dev/null 2>&1; then
        return
    fi
    python=$(find_python)
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$python cannot make virtual environments: the system package python3-venv is missing. Install it with
  $(apt_line python3-venv)
(or ${package}, where this Python is not the system's own) and run this again."
    say "Making .venv with $("$python" --version)"
    "$python" -m venv .venv
}

torch_index_answers() {
    .venv/bin/python - "$TORCH_INDEX" "$TORCH_INDEX_PATIENCE_SECONDS" 2>/dev/null <<'PYTHON'
import os, sys, threading, urllib.error, urllib.request
url, patience_seconds = sys.argv[1], float(sys.argv[2])
threading.Timer(patience_seconds, os._exit, (1,)).start()  # looking up a name knows no timeout of its own
try:
    urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=patience_seconds).close()
except urllib.error.HTTPError:
    pass  # an answer all the same
except OSError:
    os._exit(1)
os._exit(0)
PYTHON
}

# uv chooses the build of torch that fits this machine, from PyTorch's own index; without either of
# them pip takes what its index offers for the pinned version.
install_torch() {
    local build=${TORCH_BUILD:-auto} built
    built=$(cat .venv/torch-build 2>/dev/null || true)
    if [[ $build == "$built" ]] && .venv/bin/python -m pip show -q torch 2>/dev/null; then
        return
    fi
    say "Installing torch $TORCH_VERSION (TORCH_BUILD=$build)"
    if ! install_torch_with_uv "$build" "$built"; then
        say "Without PyTorch's own index and uv, TORCH_BUILD=$build is not looked at: pip takes its index's build."
        .venv/bin/python -m pip install "torch==$TORCH_VERSION"
    fi
    printf '%s' "$build" >.venv/torch-build
}

install_torch_with_uv() {
    local build=$1 built=$2 reinstall=() uv=(.venv/bin/python -m uv)
    torch_index_answers || return
    "${uv[@]}" --version >/dev/null 2>&1 || .venv/bin/python -m pip install uv || return
    [[ -z $built ]] || reinstall=(--reinstall-package torch)
    "${uv[@]}" pip install --python .venv/bin/python --torch-backend "$build" \
        "${reinstall[@]+"${reinstall[@]}"}" "torch==$TORCH_VERSION"
}

# What decides the content of .venv: any change of it installs again. The place counts, for the
# editable install and the scripts in .venv/bin name it.
install_fingerprint() {
    { cat pyproject.toml deploy/constraints.txt deploy/install.sh; printf '%s\n' "$PWD" "$1" "${TORCH_BUILD:-auto}"; } |
        sha256sum | cut -d' ' -f1
}

# mark_installed NAME EXTRAS: what deploy/up and what deploy/test needs is marked apart.
mark_installed() { install_fingerprint "$2" >".venv/installed-$1"; }

is_installed() {
    [[ -x .venv/bin/python && -f .venv/installed-$1 && $(<".venv/installed-$1") == "$(install_fingerprint "$2")" ]]
}

# install_into_venv NAME EXTRAS: nothing where nothing changed since the last time.
install_into_venv() {
    if is_installed "$1" "$2"; then
        return
    fi
    make_venv
    install_torch
    say "Installing inpaintd and what it needs ($2)"
    .venv/bin/python -m pip install --constraint deploy/constraints.txt --editable ".[$2]"
    mark_installed "$1" "$2"
}
