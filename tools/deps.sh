#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The Debian packages Kelpie is built and tested with. --check: status 0 when nothing is missing, else prints what is;
# needs neither root nor network; --check mock looks only for what building and testing on Mock takes. Without it:
# installs what is missing, as root or by sudo, and asks nothing.
set -eu

packages='meson ninja-build gcc g++ pkg-config python3 make
libcurl4-openssl-dev libmicrohttpd-dev libjansson-dev libsqlite3-dev libzstd-dev liblz4-dev libssl-dev
libcmocka-dev libseccomp-dev
xz-utils zstd'
[ "${2-}" = mock ] || packages="$packages
qemu-system-x86 spin
clang clang-format clang-tidy cppcheck libclang-rt-14-dev"
# The simulator must come to the same hashes on the other architecture: tests/dst/matrix.py, tools/aarch64.ini.
foreign=''
if [ "${2-}" != mock ] && [ "$(dpkg --print-architecture)" = amd64 ]; then
    foreign=arm64
    packages="$packages gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
libjansson-dev:arm64 libzstd-dev:arm64 libssl-dev:arm64"
fi

missing=''
for package in $packages; do
    case $(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null) in
    ii*) ;;
    *) missing="$missing $package" ;;
    esac
done

if [ "${1-}" = --check ]; then
    [ -z "$missing" ] || { echo "missing:$missing" >&2; exit 1; }
    exit 0
fi
[ -n "$missing" ] || { echo "nothing is missing"; exit 0; }

as_root=''
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "deps: not root, and no sudo: cannot install$missing" >&2; exit 1; }
    as_root='sudo -n'
fi
export DEBIAN_FRONTEND=noninteractive
echo "installing:$missing"
case " $missing" in
*":$foreign"*) dpkg --print-foreign-architectures | grep -qx "$foreign" || $as_root dpkg --add-architecture "$foreign" ;;
esac
$as_root apt-get -q update
# $missing is a list on purpose.
# shellcheck disable=SC2086
$as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $missing
