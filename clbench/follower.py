"""Follower: a process that teaches cells together with the one that started it, and says nothing."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback

from clbench.compare import Request, follow
from clbench.errors import ClbenchError
from clbench.job import Job
from clbench.means import Means


def _leave_with_the_leader() -> None:
    """When the standard input ends, nobody waits any more."""
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    """Do the `Job` that is the one argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that leads says when to stop
    threading.Thread(target=_leave_with_the_leader, name="leader", daemon=True).start()
    job, code = Job.loaded(sys.argv[1]), 0
    try:
        code = follow(Request(**job.request), Means(threads=job.threads), job.device, job.deterministic)
    except ClbenchError as error:  # the last line is what the one that leads tells
        print(error, file=sys.stderr)
        code = 1
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)  # at once: the thread that waits for the leader's end holds the standard input


if __name__ == "__main__":
    main()
