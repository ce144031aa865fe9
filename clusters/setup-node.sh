#!/usr/bin/env bash
# Sets this machine up as a node: a virtual environment that holds exactly constraints.txt. The second time it only looks.
#
#   clusters/setup-node.sh [EXTRA...]      an extra of pyproject.toml: aws, gcp or azure on a head that starts machines
#
# No root rights, no shell of the user's changed: Ray is linked into ~/.local/bin, where `ray exec` and `ray down` look.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
cd "$root"
source clusters/versions.env

find_python() {
    if command -v "python$PYTHON"; then
        return
    fi
    export PATH="$HOME/.local/bin:$PATH"
    if ! command -v uv >&2; then
        local installer
        installer=$(mktemp)
        curl -LsSf --retry 5 -o "$installer" "https://astral.sh/uv/$UV/install.sh"
        UV_NO_MODIFY_PATH=1 sh "$installer" >&2
        rm "$installer"
    fi
    uv python install --quiet "$PYTHON" >&2
    uv python find "$PYTHON"
}

# Triton compiles a C file against Python's headers at the first training step on a GPU.
require_compiler() {
    local missing=() headers
    command -v nvidia-smi >/dev/null || return 0
    command -v "${CC:-gcc}" >/dev/null || command -v clang >/dev/null || missing+=(gcc libc6-dev)
    headers=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [[ -e $headers/Python.h ]] || missing+=("python$PYTHON-dev")
    if ((${#missing[@]})); then
        echo "setup-node: training on a GPU compiles, and this machine lacks what that takes:" \
            "sudo apt-get install ${missing[*]}" >&2
        exit 1
    fi
}

wanted=$(cat constraints.txt pyproject.toml clusters/versions.env - <<<"$*" | sha256sum)
if [[ -x $venv/bin/ray && $(cat "$venv/set-up" 2>/dev/null) == "$wanted" ]]; then
    echo "setup-node: up to date"
    exit
fi

extras=$(IFS=,; echo "$*")
rm -f "$venv/set-up"
"$(find_python)" -m venv --clear "$venv"
require_compiler
"$venv/bin/pip" install --quiet --disable-pip-version-check --retries 10 -c constraints.txt -e ".${extras:+[$extras]}"
unpinned=$("$venv/bin/pip" freeze --exclude-editable | grep -vixFf constraints.txt || true)
if [[ $unpinned ]]; then
    echo "setup-node: constraints.txt does not name these, add them: $unpinned" >&2
    exit 1
fi
mkdir -p "$HOME/.local/bin"
ln -sf "$venv/bin/ray" "$HOME/.local/bin/ray"
echo "$wanted" >"$venv/set-up"
echo "setup-node: $("$venv/bin/python" --version), $("$venv/bin/ray" --version)"
