"""`make demo`: play the story, then print the addresses and keep running. `--once` exits after the story."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from examples.demo.calls import LOBBY, STATUS, WIKI
from examples.demo.processes import ProcessFailed
from examples.demo.stack import Stack, stack
from examples.demo.story import STORY

out = Console(highlight=False, soft_wrap=True)


async def play(stack_: Stack) -> bool:
    """Play every step in order. True if all succeeded."""
    for number, step in enumerate(STORY, 1):
        try:
            async with asyncio.timeout(90):
                shown = await step.play(stack_)
        except Exception as exc:
            out.print(f"[bold red]✗[/] {number:2} {step.line}")
            out.print(f"     {type(exc).__name__}: {exc}", markup=False)
            if not isinstance(exc, ProcessFailed):
                out.print(f"     logs: {stack_.processes.directory}", markup=False)
            return False
        out.print(f"[bold green]✓[/] {number:2} {step.line}")
        if shown:
            out.print("     " + shown.replace("\n", "\n     "), style="dim", markup=False)
    return True


async def main(once: bool, directory: Path) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with stack(directory) as running:
        playing = asyncio.Task(play(running))
        stopping = asyncio.Task(stop.wait())
        await asyncio.wait((playing, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not playing.done():
            playing.cancel()
            await asyncio.wait((playing,))
            return 130
        if not playing.result():
            return 1
        if not once:
            proxy = running.proxies["proxy"]
            out.print("\nEverything is up until Ctrl-C.", style="bold")
            out.print(f"  management REST   {running.rest}/api   Authorization: Token {running.owner}", markup=False)
            out.print(f"  proxy             http://127.0.0.1:{proxy.http} (Host: {STATUS})", markup=False)
            out.print(f"  try               netbird-proxy peer get -c {running.configs['alice-laptop']} http://{WIKI}/")
            out.print(f"                    netbird-proxy peer get -c {running.configs['bob-laptop']} http://{LOBBY}/")
            out.print(f"                    netbird-proxy routes --admin {proxy.admin}", markup=False)
            out.print(f"  logs              {running.processes.directory}", markup=False)
            await stop.wait()
        stopping.cancel()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the story")
    arguments = parser.parse_args()
    scratch = tempfile.mkdtemp(prefix="netbird-demo-")
    code = asyncio.run(main(arguments.once, Path(scratch)))
    if code in (0, 130):
        shutil.rmtree(scratch)
    sys.exit(code)
