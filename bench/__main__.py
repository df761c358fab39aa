"""All benchmarks one after another, in processes of their own, written down in one file:
`python -m bench [NAME ...] [--out FILE]`. With one NAME, what options it has itself may follow:
`python -m bench reconstruct --sets reef --no-train`.

Exit code 1 when one missed a target or did not end with its results; the others run all the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.results import machine

# Modules of this package with a `main` that takes --json.
BENCHMARKS = (
    "makespan",
    "simulate",
    "reattach",
    "hung_host",
    "idle_hosts",
    "reconstruct",
    "sfm_faults",
    "junk",
    "turbid",
    "push",
    "disk",
    "merge",
    "stitch",
    "stitch_real",
    "posegraph",
    "rendered",
    "stitch_hosts",
)
ROOT = Path(__file__).resolve().parent.parent
OUT = Path(__file__).with_name("RESULTS.md")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`report` is what the benchmark printed; None: it failed, and `error` says how."""

    name: str
    seconds: float
    report: dict[str, Any] | None
    error: str = ""

    @property
    def ok(self) -> bool:
        return self.report is not None and all(row["ok"] for row in self.report["results"])


def run(name: str, options: Sequence[str] = ()) -> Outcome:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", "--json", *options],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - began
    name = " ".join([name, *options])
    try:
        report = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        error = f"exit {done.returncode}, no results: `python -m bench.{name}` shows why"
        return Outcome(name=name, seconds=seconds, report=None, error=error)
    return Outcome(name=name, seconds=seconds, report=report)


def commit() -> str:
    """Of the checkout, "+" for changes on top of it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        mine = OUT.relative_to(ROOT).as_posix()
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{mine}")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def document(outcomes: Sequence[Outcome], *, date: str, machine: str, commit: str) -> str:
    """Markdown: where and when, then a table for each benchmark."""
    lines = [
        "# Benchmarks",
        "",
        f"{date}, commit {commit}, {machine}. Made by `make bench`; what each figure means is said",
        "at the top of `bench/<name>.py`.",
    ]
    for outcome in outcomes:
        verdict = "ok" if outcome.ok else "FAILED" if outcome.report is None else "MISSED"
        lines += ["", f"## {outcome.name}: {verdict} ({outcome.seconds:.0f} s)", ""]
        if outcome.report is None:
            lines.append(outcome.error)
            continue
        lines += ["| figure | value | unit | target | |", "|---|---:|---|---:|---|"]
        lines += [_row(row) for row in outcome.report["results"]]
    return "\n".join(lines) + "\n"


def _row(row: dict[str, Any]) -> str:
    if row["target"] is None:
        target = verdict = ""
    else:
        bound = "<=" if row["better"] == "lower" else ">="
        target, verdict = f"{bound} {row['target']:g}", "ok" if row["ok"] else "MISSED"
    return f"| {row['name']} | {row['value']:.4g} | {row['unit']} | {target} | {verdict} |"


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    options.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    options.add_argument(
        "--out", type=Path, default=OUT, help="file to write (default: %(default)s)"
    )
    given, its_own = options.parse_known_args(arguments)
    if its_own and len(given.names) != 1:
        options.error(f"{its_own[0]} is no option for all benchmarks, only for one that is named")
    if unknown := set(given.names) - set(BENCHMARKS):
        options.error(f"no benchmark {', '.join(sorted(unknown))}")
    outcomes = []
    where, at = machine(), commit()
    for name in given.names or BENCHMARKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        outcomes.append(run(name, its_own))
    date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    given.out.write_text(document(outcomes, date=date, machine=where, commit=at))
    print(f"{given.out}: " + ", ".join(f"{o.name} {'ok' if o.ok else 'MISSED'}" for o in outcomes))
    return 0 if all(outcome.ok for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
