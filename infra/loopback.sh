#!/usr/bin/env bash
# infra/loopback.sh COMMAND...: runs COMMAND in a network namespace that has only the loopback interface, so that
# nothing it starts can be reached from outside and nothing can call out. Where the system does not allow
# that, it says so and runs COMMAND as it is.
set -euo pipefail

up='ip link set lo up 2>/dev/null || python3 -c "
import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack(\"16sh14x\", b\"lo\", 0x1 | 0x40))  # SIOCSIFFLAGS, IFF_UP | IFF_RUNNING
"'
for options in --net '--net --user --map-root-user'; do
    # shellcheck disable=SC2086
    if unshare $options bash -c "$up" 2>/dev/null; then
        # shellcheck disable=SC2086
        exec unshare $options bash -c "$up"'; exec "$@"' loopback "$@"
    fi
done
echo "notice: no network namespace here: running on the machine's own network" >&2
exec "$@"
