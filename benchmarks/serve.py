"""Requests at a fixed rate to task=serve's application on this machine: latencies, errors, processor time and memory.

    python benchmarks/serve.py [--rate 500] [--seconds 10] [--connections 32] [--quick]

Open loop: requests are due at times that do not depend on the answers, and a latency counts from when one was due. Of
ten requests one opens a live session with a profile, one gives a whole session, and the others click in a live session
and get 20 items. The service is a process of its own with ARNN at the paper's sizes for XING (see recommend.py); client
and service share the machine.
"""

import asyncio
import gc
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recommend import PROFILE, make_predictor
from workloads import machine, make_parser, parse

TICKS = os.sysconf("SC_CLK_TCK")
LENGTH = re.compile(rb"\r\ncontent-length: ([0-9]+)", re.IGNORECASE)


def serve(n_items: int, port: int) -> None:
    """The service, until it is terminated."""
    from arnn_lightning.serving.http import make_app, run_app
    from arnn_lightning.serving.worker import Worker

    gc.freeze()  # as task=serve does
    worker = Worker(make_service, n_items)
    run_app(make_app(worker.ask, None, 1_000_000, worker.lifespan), "127.0.0.1", port)


def make_service(n_items: int) -> Any:
    import torch

    from arnn_lightning.serving.service import Service, SessionStore

    gc.freeze()  # as task=serve does

    class Models:  # what the service reads of a ReloadingPredictor
        current = make_predictor(n_items)

    torch.set_num_threads(1)
    return Service(Models(), SessionStore(10_000, 1_800))  # type: ignore[arg-type]


class Connection(asyncio.Protocol):
    """One request after the other, with little time in the client, which shares the machine with the service."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.received = transport, b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, _, content = self.received.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if length and len(content) >= int(length[1]):
            self.received = b""
            self.answer.set_result((int(head[9:12]), content))

    async def send(self, message: bytes) -> tuple[int, bytes]:
        self.answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self.transport.write(message)
        return await self.answer


def post(path: str, body: Any) -> bytes:
    content = json.dumps(body)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    return f"{head}\r\n\r\n{content}".encode()


async def load(port: int, rate: float, seconds: float, n_connections: int, n_items: int) -> tuple[Any, Counter[int]]:
    """Latencies in seconds in the order of the requests, and how often each status came."""
    rng = np.random.default_rng(1)
    due = np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
    connections: asyncio.Queue[Any] = asyncio.Queue()
    for _ in range(n_connections):
        _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
        connections.put_nowait(connection)
    keys: list[str] = []
    latencies, statuses = np.zeros(len(due)), Counter[int]()
    items = rng.integers(0, n_items, (len(due), 3)).tolist()
    opening = post("/v1/sessions", {"profile": PROFILE})
    whole = {
        number: post("/v1/recommend", {"session": items[number], "profile": PROFILE})
        for number in range(1, len(due), 10)
    }

    async def send(number: int, start: float) -> None:
        connection = await connections.get()
        if number % 10 == 0 or not keys:
            status, content = await connection.send(opening)
            keys.append(json.loads(content)["id"])
        elif number % 10 == 1:
            status, _ = await connection.send(whole[number])
        else:
            key = keys[number % len(keys[-200:]) - len(keys[-200:])]
            status, _ = await connection.send(post(f"/v1/sessions/{key}/clicks", {"item": items[number][0]}))
        statuses[status] += 1
        latencies[number] = time.perf_counter() - start - due[number]
        connections.put_nowait(connection)

    start, tasks = time.perf_counter(), []
    for number in range(len(due)):
        await asyncio.sleep(max(0.0, start + due[number] - time.perf_counter()))
        tasks.append(asyncio.create_task(send(number, start)))
    await asyncio.gather(*tasks)
    return latencies, statuses


def resources(pid: int) -> tuple[float, float]:
    """Processor seconds and resident MB of a process and those that it started."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    seconds, size = (int(fields[11]) + int(fields[12])) / TICKS, pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        of_child = resources(int(child))
        seconds, size = seconds + of_child[0], size + of_child[1]
    return seconds, size


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--items", type=int, default=13_000)
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--port", type=int, default=18_765)
    parser.add_argument("--serve", action="store_true", help="run the service")
    options = parse(parser, arguments, items=300, rate=100.0, seconds=0.5, connections=4)
    if options.serve:
        serve(options.items, options.port)
        return 0
    print(machine())
    command = [sys.executable, __file__, "--serve", f"--items={options.items}", f"--port={options.port}"]
    with subprocess.Popen(command) as process:
        try:
            while True:
                try:
                    asyncio.run(load(options.port, 50, 1.0, 2, options.items))  # warms up
                    break
                except OSError:
                    if process.poll() is not None:
                        return 1
                    time.sleep(0.2)
            for _ in range(options.rounds):
                before, client = resources(process.pid), time.process_time()
                latencies, statuses = asyncio.run(
                    load(options.port, options.rate, options.seconds, options.connections, options.items)
                )
                spent, memory = resources(process.pid)
                quantiles = ", ".join(f"p{q} {1e3 * np.percentile(latencies, q):.1f}" for q in (50, 90, 99))
                each = 1e3 * (spent - before[0]) / len(latencies)
                client = 1e3 * (time.process_time() - client) / len(latencies)
                print(
                    f"{options.items:,} items, {options.rate:.0f}/s: {quantiles} ms; statuses {dict(statuses)}; "
                    f"{each:.2f} ms of processor a request, of the client {client:.2f}; "
                    f"{before[1]:.0f} -> {memory:.0f} MB"
                )
        finally:
            process.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
