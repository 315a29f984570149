"""A listening socket that a supervisor keeps open while the server is started anew.

systemd hands it over by `sd_listen_fds(3)`; requests that come while there is no server wait in
the socket's backlog instead of being refused.
"""

from __future__ import annotations

import os
import socket

_FIRST = 3
"""The number of the first descriptor that is handed over."""


def inherited_socket() -> socket.socket | None:
    """The socket that was handed to this process, or None. A second call gives None.

    Raises:
        OSError: what was handed over is not one listening TCP socket.
    """
    pid, count = os.environ.get("LISTEN_PID"), os.environ.get("LISTEN_FDS", "")
    if pid != str(os.getpid()):
        return None
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    if count != "1":
        raise OSError(f"{count or 'no'} sockets were handed over, and one is taken, for HTTP")
    os.set_inheritable(_FIRST, False)
    found = socket.socket(fileno=_FIRST)
    listens = found.type is socket.SOCK_STREAM and found.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    )
    if found.family not in (socket.AF_INET, socket.AF_INET6) or not listens:
        raise OSError("what was handed over is no listening TCP socket")
    return found
