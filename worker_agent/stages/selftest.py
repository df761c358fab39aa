"""One known-answer check in its own process: `python -m worker_agent.stages.selftest NAME`.

The last line of stdout is a JSON object {"message": what is wrong, or ""}.
"""

from __future__ import annotations

import importlib
import json
import sys
import zlib  # noqa: F401 - before pycolmap, whose wheel exports a zlib of its own that aborts

# Each module has `check() -> str`.
CHECKS = ("decode", "sift", "train")


def main(arguments: list[str]) -> int:
    """`arguments`: the name of one check."""
    if len(arguments) != 1 or arguments[0] not in CHECKS:
        print(f"usage: python -m worker_agent.stages.selftest {'|'.join(CHECKS)}", file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(f"worker_agent.stages.selftest_{arguments[0]}")
        message = str(module.check())
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    print(json.dumps({"message": message}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
