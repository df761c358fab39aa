"""`python -m worker_agent.demo OUT`: films the demo's survey.

Writes OUT/<auv>/<gopro_serial>/<segment>/<clip>.MP4 and OUT/truth/<segment>.json; one JSON object a
line on stdout tells the progress.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from worker_agent.demo.film import FilmError, film
from worker_agent.demo.survey import PRESETS


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m worker_agent.demo", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="demo")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    try:
        for step in film(
            options.out, PRESETS[options.preset], seed=options.seed, threads=options.threads
        ):
            print(json.dumps(step), flush=True)
    except (FilmError, OSError) as error:
        print(f"demo footage: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
