"""Takes and frees GPU memory at random, as somebody else's program may:
`python -m tests.simulated_gpu.thief SEED AMBUSHES DIRECTORY...`, until it is killed.

An ambush takes all that is left as soon as a stage has begun to take memory: no probe can have
told of it.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from tests.simulated_gpu.driver import SimulatedGpus, free_mib

_LOOK_S = 0.03
_ACTS_S = (1.0, 6.0)  # between two changes on one GPU
_AMBUSH_S = 1.5


def main(seed: str, ambushes: str, *directories: str) -> None:
    chance = random.Random(int(seed))
    left = int(ambushes)
    known: set[int] = set()
    places = [
        (gpus, words[1])
        for gpus in map(SimulatedGpus, map(Path, directories))
        for words in map(str.split, gpus.ledger.read_text().splitlines())
        if words[0] == "gpu"
    ]
    due = dict.fromkeys(range(len(places)), 0.0)
    while True:
        for number, (gpus, uuid) in enumerate(places):
            lines = gpus.ledger.read_text().splitlines()
            users = {int(w[2]) for w in map(str.split, lines) if w[:2] == ["use", uuid]}
            now = time.monotonic()
            if left and users - known - {gpus.pid}:
                left -= gpus.take(uuid, free_mib(lines, uuid) + gpus.held(lines, uuid), "ambush")
                due[number] = now + _AMBUSH_S
            elif now >= due[number]:
                share = max(0.0, chance.uniform(-0.8, 0.9))
                room = free_mib(lines, uuid) + gpus.held(lines, uuid)
                gpus.take(uuid, int(share * room), "thief")
                due[number] = now + chance.uniform(*_ACTS_S)
            known |= users
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
