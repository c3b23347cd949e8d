# shellcheck shell=bash
# Cross-compiling for ARM with Debian's tools; sourced by build-arm and test-arm.
#
# Debian 12's rustc-web and cargo-web have a matching standard library for arm64.
# For armhf it is built along with the program, from rust-web-src.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
TARGET_DIR=$(realpath --canonicalize-missing "${CARGO_TARGET_DIR:-target}")

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# The Rust targets meant by aarch64, armv7 or all.
arm_targets() {
    case $1 in
    aarch64) echo aarch64-unknown-linux-gnu ;;
    armv7) echo armv7-unknown-linux-gnueabihf ;;
    all) echo aarch64-unknown-linux-gnu armv7-unknown-linux-gnueabihf ;;
    *) return 1 ;;
    esac
}

# install_packages COMMAND... -- PACKAGE...: installs if a command or file is missing.
install_packages() {
    local missing=()
    while [ "$1" != -- ]; do
        command -v "$1" >/dev/null || [ -e "$1" ] || missing+=("$1")
        shift
    done
    shift
    [ ${#missing[@]} -gt 0 ] || return 0
    echo "missing: ${missing[*]}; installing $*"
    local root=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || die "install these packages as root: $*"
        root=(sudo)
    fi
    if [[ " $* " == *:arm64\ * ]]; then
        "${root[@]}" dpkg --add-architecture arm64
    fi
    "${root[@]}" apt-get update -q
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"
}

install_cross_tools() {
    case $1 in
    aarch64-*)
        install_packages /usr/bin/rustc /usr/bin/cargo /usr/lib/rustlib/aarch64-unknown-linux-gnu/lib \
            gcc aarch64-linux-gnu-gcc /usr/aarch64-linux-gnu/include/stdio.h -- \
            rustc-web cargo-web libstd-rust-web-dev:arm64 gcc libc6-dev gcc-aarch64-linux-gnu libc6-dev-arm64-cross
        ;;
    armv7-*)
        install_packages /usr/bin/rustc /usr/bin/cargo /usr/lib/rustlib/src/rust/library \
            gcc arm-linux-gnueabihf-gcc /usr/arm-linux-gnueabihf/include/stdio.h -- \
            rustc-web cargo-web rust-web-src gcc libc6-dev gcc-arm-linux-gnueabihf libc6-dev-armhf-cross
        ;;
    esac
}

# The prefix of the GNU tools and of the directory of libraries.
gnu_prefix() {
    case $1 in
    aarch64-*) echo aarch64-linux-gnu ;;
    armv7-*) echo arm-linux-gnueabihf ;;
    esac
}

# The libraries of the cross compiler, by name: if Debian's own for the target are
# installed, its loader would find those, and two versions of glibc do not mix.
qemu() {
    local root
    root=/usr/$(gnu_prefix "$1")
    case $1 in
    aarch64-*) echo "qemu-aarch64-static -L $root -E LD_LIBRARY_PATH=$root/lib" ;;
    armv7-*) echo "qemu-arm-static -L $root -E LD_LIBRARY_PATH=$root/lib" ;;
    esac
}

# Where cargo builds for that target: a directory each, so that two can build at once.
arm_build_dir() { echo "$TARGET_DIR/arm/$1"; }

# arm_cargo TARGET COMMAND ARGUMENT...: Debian's cargo for that target.
arm_cargo() {
    local target=$1 command=$2 upper options=()
    shift 2
    upper=${target^^}
    upper=${upper//-/_}
    local environment=(
        # A rustc of rustup's earlier on the path does not know Debian's libraries.
        "PATH=/usr/bin:$PATH"
        "CARGO_TARGET_DIR=$(arm_build_dir "$target")"
        "CARGO_TARGET_${upper}_LINKER=$(gnu_prefix "$target")-gcc"
        # Bounded, for an emulator that hangs.
        "CARGO_TARGET_${upper}_RUNNER=timeout 2400 $(qemu "$target")"
    )
    if [[ $target == armv7-* ]]; then
        environment+=(RUSTC_BOOTSTRAP=1)
        options+=("-Zbuild-std=std,panic_abort")
    fi
    env -u RUSTC -u RUSTDOC -u RUSTUP_TOOLCHAIN "${environment[@]}" \
        /usr/bin/cargo "$command" "${options[@]}" --locked --target "$target" "$@"
}
