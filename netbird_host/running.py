"""Runs a host's process: only its main task can end it, and no other task can delay its end."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

log = structlog.get_logger("netbird_host.running")

END = 5.0
"""Seconds for which the process waits for other tasks to end once the main task is done."""


def run_process(
    main: Coroutine[Any, Any, int], loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
) -> int:
    """Run `main` to its end and return its exit code. Must be called in the main thread, without a running loop.

    In asyncio, a `SystemExit` or `KeyboardInterrupt` of any task ends the loop. Plugins may start tasks, so here the
    loop continues unless the exception is the main task's. Tasks that ignore their cancellation end with the process,
    which then skips `atexit` handlers.
    """
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        loop = runner.get_loop()
        # Not `start_owned`: no loop runs yet.
        task = loop.create_task(main, name="main")
        while True:
            try:
                code = loop.run_until_complete(task)
                break
            except (SystemExit, KeyboardInterrupt) as error:
                if task.done():
                    raise
                log.error("task.exit_ignored", error=type(error).__name__, exc_info=error)
        left = {other for other in asyncio.all_tasks(loop) if not other.done()}
        for other in left:
            other.cancel()
        if left:
            _, hanging = loop.run_until_complete(asyncio.wait(left, timeout=END))
            if hanging:
                log.warning("process.tasks_left", tasks=[other.get_name() for other in hanging])
                logging.shutdown()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
    return code
