#!/bin/bash
# Brings a machine to where cachefs can be built and run.
#
#   packaging/bootstrap.sh system demo|test|bench   install the missing system packages (Debian, root)
#   packaging/bootstrap.sh venv EXTRAS         build .venv with the Python packages, e.g. EXTRAS=test,dev
#   packaging/bootstrap.sh python              print the interpreter that .venv is made with
#
# PYTHON=/path/to/python3 chooses another interpreter (3.11 or later).
set -euo pipefail
cd "$(dirname "$0")/.."

# What building and running needs: pyfuse3 and the lane are compiled, LightGBM loads libgomp1, mke2fs makes
# the demo's disk image.
readonly DEMO_PACKAGES="fuse3 libfuse3-dev pkg-config gcc libc6-dev libgomp1 linux-libc-dev make e2fsprogs"
# What the tests need on top.
readonly TEST_PACKAGES="qemu-utils qemu-system-x86 fio attr zstd busybox-static redis-server memcached"
# What makes whole Debian systems, for some benches and the full guest.
readonly BENCH_PACKAGES="mmdebstrap"

is_usable_python() {
    "$1" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if command -v "$candidate" >/dev/null && is_usable_python "$candidate"; then
            # Through a version manager's shim to the real one, which goes on working when the shim changes.
            "$candidate" -c 'import sys; print(sys.executable)'
            return 0
        fi
    done
    return 1
}

# The packages that the interpreter itself needs: only Debian's comes in pieces.
python_packages() {
    local python
    python=$(find_python) || python=/usr/bin/python3
    case $(readlink -f "$python") in
        /usr/bin/*) echo "python3 python3-venv python3-dev" ;;
    esac
}

missing_packages() {
    local name
    for name in "$@"; do
        dpkg-query -W -f '${db:Status-Abbrev}\n' "$name" 2>/dev/null | grep -q '^ii' || echo "$name"
    done
}

system() {
    local wanted missing
    wanted="$DEMO_PACKAGES $(python_packages)"
    [ "$1" = demo ] || wanted="$wanted $TEST_PACKAGES"
    [ "$1" != bench ] || wanted="$wanted $BENCH_PACKAGES"
    if ! command -v dpkg-query >/dev/null; then
        echo "This is not Debian: please install what these Debian packages hold, if it is missing:" >&2
        echo "    $wanted" >&2
        return 0
    fi
    # shellcheck disable=SC2086 # a list of words
    missing=$(missing_packages $wanted | tr '\n' ' ')
    missing=${missing% }
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ]; then
        echo "cachefs needs these system packages, and only root can install them: $missing" >&2
        echo "Run this command, then the same make command again:" >&2
        echo "    sudo apt-get update && sudo apt-get install --no-install-recommends $missing" >&2
        return 1
    fi
    echo "Installing system packages: $missing"
    export DEBIAN_FRONTEND=noninteractive
    # The first try uses the package lists that are there; it fails at once if there are none or they are old.
    # shellcheck disable=SC2086
    apt_install $missing >/dev/null 2>&1 || { apt-get -qq update && apt_install $missing >/dev/null; }
}

apt_install() {
    apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends "$@"
}

venv() {
    local python
    if ! python=$(find_python); then
        echo "cachefs needs Python 3.11 or later; set PYTHON=/path/to/python3 if it is not in PATH." >&2
        return 1
    fi
    if ! { [ -x .venv/bin/python ] && is_usable_python .venv/bin/python; }; then
        echo "Making .venv with $python"
        rm -rf .venv
        "$python" -m venv .venv
    fi
    echo "Installing Python packages into .venv ($1)"
    # Twice quiet leaves errors alone on the screen. Builds are isolated: pyfuse3 is built here too, where there is
    # no wheel of it, and needs more to build than the lane does.
    .venv/bin/python -m pip -qq --disable-pip-version-check install --editable ".[$1]"
}

case "${1:-}" in
    system) system "$2" ;;
    venv) venv "$2" ;;
    python) find_python ;;
    *) sed -n '2,9p' "$0" >&2; exit 2 ;;
esac
