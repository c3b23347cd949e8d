#!/bin/bash
# Runs a command with mounts, processes, a network and control groups of its own: what it
# leaves behind ends with it, however it ends. As root, in a mount namespace of its own:
#     unshare --mount --propagation private apart.sh COMMAND [ARGUMENT...]

set -euo pipefail

work=$(mktemp -d)
group=""

at_exit() {
    if [ -n "$group" ]; then
        echo 1 >"$group/cgroup.kill" || true
        # The last of what was killed may take a moment to be gone.
        for _ in $(seq 100); do
            find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && break
            sleep 0.05
        done
    fi
    umount --recursive --lazy "$work" || true
    rmdir "$work"
}
trap at_exit EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

mount -t tmpfs -o mode=755 tmpfs "$work"
mkdir "$work/groups" "$work/tmp"
mount -t cgroup2 cgroup2 "$work/groups"
group=$work/groups/tidegate-test-$$
mkdir "$group"

# Inside: this machine's /run is not the test's, and systemd finds but one kind of group.
inside='
ip link set lo up
mount -t tmpfs -o mode=755 tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec "$@"'
(
    echo 0 >"$group/cgroup.procs"
    export TMPDIR=$work/tmp
    exec setpriv --pdeathsig KILL \
        unshare --cgroup --net --pid --mount --propagation private --fork --kill-child --mount-proc \
        bash -euc "$inside" apart "$@"
) &
wait $!
