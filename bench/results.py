"""The form of every benchmark's output: a table, or one JSON object with --json."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One figure. `better` is "lower" or "higher"; without a target it is only told."""

    name: str
    value: float
    unit: str
    better: str
    target: float | None = None

    @property
    def ok(self) -> bool:
        if self.target is None:
            return True
        return self.value <= self.target if self.better == "lower" else self.value >= self.target


def told(name: str, value: float, unit: str, target: float | None, better: str = "lower") -> Result:
    return Result(name=name, value=value, unit=unit, better=better, target=target)


def machine() -> str:
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def show(name: str, results: Sequence[Result], *, as_json: bool) -> int:
    """Prints; returns the exit code: 0 when every target is met, else 1."""
    if as_json:
        rows = [{**asdict(result), "ok": result.ok} for result in results]
        print(json.dumps({"name": name, "machine": machine(), "results": rows}))
    else:
        print(f"{name} ({machine()})")
        for result in results:
            target = "" if result.target is None else f"target {result.target:g}"
            verdict = "" if result.target is None else ("ok" if result.ok else "MISSED")
            print(f"  {result.name:36} {result.value:12.3f} {result.unit:8} {target:14} {verdict}")
    return 0 if all(result.ok for result in results) else 1


def parser(description: str | None) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return options


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between neighbours; `share` from 0 to 1."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=1000, method="inclusive")[
        min(998, max(0, round(share * 1000) - 1))
    ]
