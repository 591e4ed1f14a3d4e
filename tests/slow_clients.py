"""A process of slow clients: each sends a byte of a request now and then, until it is ended.

``python slow_clients.py PORT COUNT KEY MODEL`` prints how many connections it has opened so far, a
line each second.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
from contextlib import suppress

SPREAD_S = 10.0
"""Within which all have begun."""


async def dribble(port: int, number: int, request: tuple[bytes, bytes], opened: list[int]) -> None:
    """Send a byte of a request now and then; begin again where the server has had enough."""
    rng = random.Random(number)
    head, body = request
    # Half of them are slow with the header already, half with the body.
    quick = rng.randrange(20) if number % 2 else len(head) + rng.randrange(20)
    await asyncio.sleep(rng.uniform(0, SPREAD_S))
    while True:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            opened.append(number)
            writer.write((head + body)[:quick])
            for byte in (head + body)[quick:]:
                await asyncio.sleep(rng.uniform(0.5, 1.5))
                writer.write(bytes([byte]))
                await writer.drain()
            writer.close()
        await asyncio.sleep(1)


async def everybody(port: int, count: int, key: str, model: str) -> None:
    """Run all of them."""
    body = json.dumps({"model": model, "prompt": "x" * 100}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    opened: list[int] = []
    tasks = [asyncio.create_task(dribble(port, n, (head, body), opened)) for n in range(count)]
    while not any(task.done() for task in tasks):
        print(len(opened), flush=True)
        await asyncio.sleep(1)
    await asyncio.gather(*tasks)


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    asyncio.run(everybody(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]))
