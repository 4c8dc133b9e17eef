#!/usr/bin/env bash
# The native library under sanitizers and emulators: builds edgelm_check for each and runs it.
# What a machine lacks is named and left out.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1

# build NAME CMAKE_ARGUMENT...: edgelm_check in $work/NAME
build() {
    local name=$1
    shift
    cmake -S "$root" -B "$work/$name" -DEDGELM_CHECK=ON "$@" >"$work/$name.log"
    cmake --build "$work/$name" --target edgelm_check >>"$work/$name.log" 2>&1 ||
        { cat "$work/$name.log" >&2; return 1; }
}

sanitize() {
    echo "-- $1 sanitizer"
    build "$1" \
        -DCMAKE_CXX_FLAGS="-O1 -g -fsanitize=$1 -fno-sanitize-recover=all -fno-omit-frame-pointer"
    "$work/$1/edgelm_check"
}

# emulate PROCESSOR COMPILER EMULATOR SYSROOT INSTRUCTION_SET...
emulate() {
    local processor=$1 compiler=$2 emulator=$3 sysroot=$4
    shift 4
    for tool in "$compiler" "$emulator"; do
        if ! command -v "$tool" >/dev/null; then
            echo "-- left out: $processor, for want of $tool (Debian: g++-aarch64-linux-gnu qemu-user)"
            return 0
        fi
    done
    echo "-- $processor in $emulator"
    build "$processor" -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux \
        -DCMAKE_SYSTEM_PROCESSOR="$processor" -DCMAKE_CXX_COMPILER="$compiler"
    "$emulator" -cpu max -L "$sysroot" "$work/$processor/edgelm_check" "$@"
}

emulate aarch64 aarch64-linux-gnu-g++ qemu-aarch64 /usr/aarch64-linux-gnu neondotprod neoni8mm
if grep -q avx512_vnni /proc/cpuinfo; then
    echo "-- AVX-VNNI in AVX512's encoding"
    build vnni -DCMAKE_BUILD_TYPE=Release -DEDGELM_VNNI_AS_AVX512=ON
    "$work/vnni/edgelm_check" avxvnni
else
    echo "-- left out: AVX-VNNI in AVX512's encoding, for want of AVX512-VNNI"
fi
for kind in address undefined thread; do sanitize "$kind"; done
