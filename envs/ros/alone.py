"""Run a command in a network of its own, with nothing but loopback, where the machine allows it.

``python envs/ros/alone.py COMMAND...``: no discovery packet of ROS can leave, and nobody else's can
come in. Where namespaces are forbidden the command runs all the same, after a line that says so:
the ROS domain is random and its discovery range is this machine in any case.

Standard library only, and run by its path.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1


def leave_network() -> None:
    """Put this process into a new network namespace whose loopback is up.

    Raises:
        OSError: the machine does not allow it.
    """
    user, group = os.getuid(), os.getgid()
    try:
        os.unshare(os.CLONE_NEWNET)
    except PermissionError:  # not root: root of a user namespace may, too
        os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    with socket.socket(type=socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack_from("H", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request), 16)[0]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def main() -> None:
    command = sys.argv[1:]
    try:
        if not hasattr(os, "unshare"):
            raise OSError("this system has no namespaces")
        leave_network()
    except OSError as error:
        print(f"alone: no network of its own ({error}); going on in this one", file=sys.stderr)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
