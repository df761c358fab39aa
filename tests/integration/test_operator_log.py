"""A reader of the log who stops reading must not stop the dispatcher."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dispatcher.operator_log import WAITING_LINES

LINES = WAITING_LINES * 2
# Far more than a pipe holds; stdin says when to go on, stdout how far it came.
PROGRAM = f"""\
import logging, sys
from dispatcher.operator_log import operator_log
log = logging.getLogger("cosma")
with operator_log(logging.INFO):
    for number in range({LINES}):
        log.info("line %d %s", number, "x" * 60)
    print("through", flush=True)
    sys.stdin.readline()
    log.info("the last")
"""


@contextmanager
def talker() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "through\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_reader_that_stops_reading_stops_nobody() -> None:
    with talker() as process:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(timeout=60) == 0


def test_lines_come_in_order_and_what_was_dropped_is_counted() -> None:
    with talker() as process:
        assert process.stdin is not None
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(WAITING_LINES)]
        process.stdin.write("\n")
        process.stdin.flush()
        # Not communicate(): it reads past what readline() has in its buffer.
        lines += process.stderr.readlines()
        said = [line.split() for line in lines]
        numbers = [int(words[2]) for words in said if words[1] == "line"]
        dropped = sum(int(words[0]) for words in said if words[1] == "lines")
        assert numbers == sorted(set(numbers))
        assert len(numbers) >= WAITING_LINES
        assert dropped == LINES - len(numbers) > 0
        assert lines[-1].endswith(" the last\n")
