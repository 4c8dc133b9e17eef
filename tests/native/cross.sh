#!/usr/bin/env bash
# Compiles the native library for other systems with PyPI's ziglang; links and runs nothing, since
# zig would first build each system's C++ library. Expects python with ziglang, cmake and ninja.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export ZIG_GLOBAL_CACHE_DIR=$work/cache ZIG_LOCAL_CACHE_DIR=$work/cache

# cross TARGET SYSTEM PROCESSOR: what zig calls it, then what CMake does. CMake is told what the
# compiler is, because it would link programs to find out.
cross() {
    local target=$1 system=$2 processor=$3 compiler=$work/$1-c++
    # zig spells ARM's extensions as those of a processor.
    cat >"$compiler" <<WRAPPER
#!/usr/bin/env bash
exec python -m ziglang c++ -target $target "\${@/#-march=armv8.2-a/-mcpu=generic}"
WRAPPER
    chmod +x "$compiler"
    cmake -S "$root" -B "$work/$target" -G Ninja -DCMAKE_BUILD_TYPE=Release \
        -DCMAKE_SYSTEM_NAME="$system" -DCMAKE_SYSTEM_PROCESSOR="$processor" \
        -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_CXX_FLAGS=-Werror \
        -DCMAKE_CXX_COMPILER_ID_RUN=ON -DCMAKE_CXX_COMPILER_ID=Clang \
        -DCMAKE_CXX_COMPILER_VERSION=20 -DCMAKE_CXX_COMPILER_FORCED=ON \
        -DCMAKE_CXX_COMPILE_FEATURES=cxx_std_17 -DCMAKE_CXX_STANDARD_COMPUTED_DEFAULT=17 \
        -DCMAKE_HAVE_LIBC_PTHREAD=ON -DCMAKE_SKIP_RPATH=ON >"$work/log" 2>&1 &&
        cmake --build "$work/$target" --target edgelm_parts >>"$work/log" 2>&1 ||
        { cat "$work/log" >&2; echo "$target failed" >&2; return 1; }
    echo "$target: $(find "$work/$target" -name '*.o' -o -name '*.obj' | wc -l) files compiled"
}

cross aarch64-linux-gnu Linux aarch64
cross x86_64-windows-gnu Windows AMD64
cross aarch64-macos Darwin arm64
