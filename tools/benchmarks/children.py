"""Forked children that do something and say what came of it."""

import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any


class Child:
    """A forked process that does *life* and sends what it returns."""

    def __init__(self, life: Callable[[], Any]) -> None:
        sys.stdout.flush()
        reads, writes = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.close(reads)
                answer = pickle.dumps(life())
                with open(writes, "wb") as pipe:
                    pipe.write(answer)
                status = 0
            except BaseException:  # noqa: BLE001  (it ends here)
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(writes)
        self._pipe = reads

    def result(self) -> Any:
        """What it returned. RuntimeError if it ended otherwise."""
        with open(self._pipe, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        if status:
            raise RuntimeError(f"a worker ended with {os.waitstatus_to_exitcode(status)}")
        return pickle.loads(answer)

    def end(self) -> None:
        """SIGKILL, whatever it was doing."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._pipe)
