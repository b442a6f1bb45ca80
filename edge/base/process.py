"""What this process leaves behind when it crashes: nothing.

The memory of a node holds whole pictures and the broker's password. A core dump would put both on the
disk, readable for whoever collects crashes.
"""

from __future__ import annotations

import ctypes
import logging
import resource

log = logging.getLogger(__name__)

PR_SET_DUMPABLE = 4  # <linux/prctl.h>


def forbid_core_dumps() -> None:
    """Make sure that neither the kernel nor a crash collector writes this process's memory.

    RLIMIT_CORE is enough where cores are files; a core_pattern that is a pipe, such as Ubuntu's apport,
    is not bound by it (core(5)), and asks whether the process is dumpable. What cannot be
    set is told, and the node runs."""
    try:
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
    except (OSError, ValueError, AttributeError) as error:
        log.warning("core dumps cannot be switched off (%s): they would hold pictures", error)
