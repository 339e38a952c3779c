"""A failure in one process of a run on many devices ends all of them (state diagram: docs/many-devices.md).

What this adds to the launchers (Lightning 2.6, torchrun of torch 2.13, srun):

- An error of rank zero: Lightning's launcher does not end its child processes, which wait in their next collective.
- An error of another process: within 5 s Lightning's launcher kills rank zero, with SIGKILL, so that the exit code is
  that of a kill. torchrun sends SIGTERM, which Python does not handle inside a collective, and SIGKILL after 30 s. srun
  waits for ever, unless it has --kill-on-bad-exit.
- All of them print the errors of all processes, secondary ones included.
"""

import json
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from types import TracebackType

import torch.distributed as dist

from arnn_lightning.errors import one_line
from arnn_lightning.nn.collectives import rank_and_world_size

_FAILURE_KEY = "arnn/failure"
_POLL_INTERVAL_S = 0.5
_CLOSING_TIME_S = 2 * _POLL_INTERVAL_S  # all processes have read the failure by then: rank zero may close the store
_SHUTDOWN_TIMEOUT_S = 60.0


class PeerFailureMonitor:
    """Context in which a failure of any process ends all: one error message, from rank zero, and one exit code.

    The first process that fails stores exit code and message under a key of the rendezvous store. A thread of every
    process polls that key and ends its process, which may be blocked in a collective, by ``os._exit``. Rank zero exits
    with the failure's code, the others with 0: a launcher kills rank zero as soon as another process exits with any
    other code, maybe before the message is printed.

    Needs an initialised process group. Entering, and leaving without an error, are collective.
    """

    def __init__(self) -> None:
        self._rank, _ = rank_and_world_size()
        # A connection of its own: the main thread may be waiting in the group's.
        self._store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peer-failure-monitor", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._report(error)
            return
        dist.barrier()  # no process can fail any more
        self._stopped.set()
        self._thread.join()
        dist.barrier()  # no process polls any more: rank zero, which hosts the store, may end

    def _report(self, error: BaseException) -> None:
        """Stores the failure. Returns in rank zero if its failure was the first; other processes end here."""
        # Ctrl-C reaches all processes of a terminal: rank zero reports it, once it has saved and closed its loggers.
        if self._rank == 0 or not isinstance(error, KeyboardInterrupt):
            failure = json.dumps([self._rank, *_exit_code_and_message(error)])
            with suppress(RuntimeError):  # no store: rank zero was killed
                first = self._store.compare_set(_FAILURE_KEY, "", failure).decode()
                if self._rank == 0 and first == failure:
                    time.sleep(_CLOSING_TIME_S)
                    return
        self._thread.join(_SHUTDOWN_TIMEOUT_S)

    def _watch(self) -> None:
        try:
            while not self._store.check([_FAILURE_KEY]):
                if self._stopped.wait(_POLL_INTERVAL_S):
                    return
            rank, code, message = json.loads(self._store.get(_FAILURE_KEY))
        except RuntimeError:  # no store: rank zero was killed
            os._exit(1)
        if self._rank:
            os._exit(0)
        elif rank:
            sys.stdout.flush()
            sys.stderr.write(message)
            sys.stderr.flush()
            time.sleep(_CLOSING_TIME_S)
            os._exit(code)


def _exit_code_and_message(error: BaseException) -> tuple[int, str]:
    """As the command line ends with the same error."""
    if isinstance(error, KeyboardInterrupt):
        return 130, ""
    line = one_line(error) if isinstance(error, Exception) else None
    return (2, f"error: {line}\n") if line is not None else (1, "".join(traceback.format_exception(error)))
