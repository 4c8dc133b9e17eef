# Sourced by .ci/run and .ci/nightly: a new virtual environment and the README's own commands.
set -euo pipefail
exec </dev/null
# Expected from outside: the folder of test assets, a python of 3.11 or newer as $PYTHON or python3.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export CI=true PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 NO_COLOR=1
export EDGELM_ASSETS=${EDGELM_ASSETS:-$root/../shared/assets}
if [ ! -d "$EDGELM_ASSETS" ]; then
    echo "no assets folder at $EDGELM_ASSETS: set EDGELM_ASSETS to it" >&2
    exit 1
fi
EDGELM_ASSETS=$(cd "$EDGELM_ASSETS" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work" "$root/build"' EXIT
mkdir "$work/elsewhere"

step() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }

# The code block of README.md that follows the comment <!-- ci:NAME -->.
readme() {
    awk -v mark="<!-- ci:$1 -->" '
        $0 == mark { wanted = 1; next }
        wanted && /^```/ { if (inside) exit; inside = 1; next }
        inside { print; found = 1 }
        END { exit !found }' "$root/README.md" ||
        { echo "README.md has no block <!-- ci:$1 -->" >&2; return 1; }
}

# Runs such a block as a user would, from the folder given.
run_readme() {
    local commands
    commands=$(readme "$1")
    step "README $1: $commands"
    (cd "$2" && bash -euo pipefail -c "$commands")
}

# Runs pytest on the package as it is installed where no compiler works: without its library.
test_without_library() {
    step "installed without a C++ compiler: pytest $*"
    if [ ! -d "$work/without" ]; then
        CXX=false pip install --quiet --no-deps --target "$work/without" "$root"
    fi
    if [ -e "$work/without/quant/native/lib" ]; then
        echo "the library was built without a compiler" >&2
        return 1
    fi
    PYTHONPATH="$work/without" pytest "$@"
}

# An old build folder would put deleted modules into the new wheel.
rm -rf "$root/build"
step "new virtual environment"
"${PYTHON:-python3}" -m venv "$work/venv"
export PATH="$work/venv/bin:$PATH" EDGELM_CACHE="$work/cache"
unset PYTHONPATH PYTHONHOME
cd "$root"
