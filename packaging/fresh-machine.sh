#!/bin/bash
# Proves that nothing is missing: makes a minimal Debian 12 in a temporary folder, puts a clean clone of this
# repository's last commit into it, and runs make there. Needs root, git and mmdebstrap.
#
#   packaging/fresh-machine.sh [MAKE_TARGET...]       default: demo test
#
# This machine's configuration of apt and pip, its CA certificates and its name resolution go along, because they may
# be what reaches the package mirrors. The mounts and the processes of the run end with it, whatever happens.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${FRESH_MACHINE_INSIDE:-}" != yes ]; then
    [ "$(id -u)" = 0 ] || { echo "fresh-machine.sh needs root: it makes mounts." >&2; exit 1; }
    command -v mmdebstrap >/dev/null || { echo "apt-get install mmdebstrap first." >&2; exit 1; }
    work=$(mktemp -d "${TMPDIR:-/tmp}/fresh-machine.XXXXXX")
    # All mounts are made in a mount namespace of their own, and all processes in a process namespace of their own:
    # both are gone before the folder is removed.
    trap 'rm -rf --one-file-system "$work"' EXIT
    FRESH_MACHINE_INSIDE=yes unshare --mount --pid --fork --kill-child --propagation private \
        "$0" "$work" "${@:-demo test}"
    exit
fi

root=$1/root
shift

echo "== a minimal Debian 12"
mmdebstrap --quiet --mode=root --variant=minbase --include=make bookworm "$root" </dev/null

echo "== the last commit, cloned"
git clone --quiet --no-local . "$root/root/cachefs"
git -C "$root/root/cachefs" log -1 --format='%h %s'

echo "== this machine's way to package mirrors"
carry() {
    local path
    for path in "$@"; do
        [ -e "$path" ] || continue
        mkdir -p "$root$(dirname "$path")"
        rm -rf "${root:?}$path"
        cp -rL "$path" "$root$path"
    done
}
rm -f "$root/etc/apt/sources.list"
carry /etc/resolv.conf /etc/hosts /etc/pip.conf "$HOME/.config/pip" "$HOME/.pip" "$HOME/.netrc" \
    /etc/apt/sources.list /etc/apt/sources.list.d /etc/apt/apt.conf /etc/apt/apt.conf.d \
    /etc/apt/auth.conf.d /etc/apt/trusted.gpg.d /etc/apt/keyrings /usr/share/keyrings
# Not in its usual place, where the package ca-certificates would write over it.
kept_variables=()
if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ca-bundle.crt"
    kept_variables+=(PIP_CERT=/etc/ca-bundle.crt SSL_CERT_FILE=/etc/ca-bundle.crt)
fi
while IFS= read -r -d '' variable; do
    case ${variable%%=*} in
        PIP_CERT) ;;
        PIP_* | *_proxy | *_PROXY) kept_variables+=("$variable") ;;
    esac
done < <(env -0)

mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mountpoint --quiet "$root/sys/fs/fuse/connections" || mount -t fusectl fusectl "$root/sys/fs/fuse/connections"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
# An installed system has it from its installer or from systemd; fusermount3 reads it.
[ -e "$root/etc/mtab" ] || ln -s ../proc/self/mounts "$root/etc/mtab"

inside() {
    chroot "$root" /usr/bin/env -i HOME=/root LC_ALL=C.UTF-8 TERM="${TERM:-dumb}" \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        "${kept_variables[@]}" "$@"
}

# shellcheck disable=SC2048 # "demo test" is two words
for target in $*; do
    echo "== make $target"
    begin=$SECONDS
    inside make -C /root/cachefs "$target"
    echo "== make $target took $((SECONDS - begin)) s"
done
