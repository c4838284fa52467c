"""Fifty robots in one process, for `test_server_load.py`: asks a server as `RemotePolicy` does, and keeps all answers.

    python load.py URL CLIENTS RATE SECONDS OUTPUT.npz

Client c has the seed c; what it sees in chunk k follows from c and k alone (`seen`). Needs no torch.
"""

import asyncio
import random
import sys
import time

import numpy as np
from visuomotor_client.protocol import array_from, pack, unpack
from websockets.asyncio.client import connect

SHAPES = {"observation.state": (2,), "observation.environment_state": (16,)}


def seen(client: int, chunk: int) -> dict[str, np.ndarray]:
    """What the client observes, (1, 2, ...) by name."""
    draws = np.random.default_rng((client, chunk))
    return {name: draws.uniform(100, 400, (1, 2, *shape)).astype(np.float32) for name, shape in SHAPES.items()}


async def robot(url: str, client: int, rate: float, end: float, answers: list, late: list) -> None:
    """Takes an action at every tick; asks once for a chunk of them, when none is left."""
    async with connect(url, compression=None) as connection:
        steps = unpack(await connection.recv())["config"]["n_action_steps"]
        await connection.send(pack({"type": "reset", "id": 0, "seed": client}))
        assert unpack(await connection.recv())["seed"] == client
        await asyncio.sleep(random.Random(client).uniform(0, steps / rate))  # robots are not in step
        began, tick, chunk, left = time.monotonic(), 0, 0, 0
        while time.monotonic() < end:
            if not left:
                asked = time.monotonic()
                await connection.send(pack({"type": "chunk", "id": chunk + 1, "observation": seen(client, chunk)}))
                reply = unpack(await connection.recv())
                assert reply["type"] == "chunk" and reply["id"] == chunk + 1, reply
                answers.append((client, chunk, time.monotonic() - asked, array_from(reply["actions"], "actions")[0]))
                chunk, left = chunk + 1, steps
            left -= 1
            tick += 1
            wait = began + tick / rate - time.monotonic()
            if wait < 0:  # the clock starts anew, as a robot's would that stood still meanwhile
                late.append(client)
                began -= wait
            await asyncio.sleep(max(wait, 0))


async def main(url: str, clients: int, rate: float, seconds: float, output: str) -> None:
    """Runs them all and writes `client`, `chunk`, `seconds`, `actions` and `late`."""
    answers: list = []
    late: list = []
    end = time.monotonic() + seconds + 1
    await asyncio.gather(*(robot(url, client, rate, end, answers, late) for client in range(clients)))
    client, chunk, waited, actions = zip(*answers, strict=True)
    np.savez(output, client=client, chunk=chunk, seconds=waited, actions=np.stack(actions), late=late)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]), sys.argv[5]))
