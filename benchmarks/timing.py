"""How benchmarks measure: interleaved timing, ratios with their spread, peak memory."""

import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil


def interleaved(
    functions: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of each function in each round; all run in turn, so that they share what disturbs them."""
    for function in functions.values():
        for _ in range(warm_up):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for place in range(rounds):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - began)
        print(f"\rround {place + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return seconds


def ratios(seconds: dict[str, list[float]], baseline: str) -> dict[str, dict[str, float]]:
    """Median and quartiles of the ratio to the baseline in the same round."""
    base = np.array(seconds[baseline])
    found = {}
    for name, times in seconds.items():
        low, median, high = np.quantile(np.array(times) / base, [0.25, 0.5, 0.75])
        found[name] = {"ratio": float(median), "low": float(low), "high": float(high)}
    return found


def peak_bytes() -> int:
    """The most memory that this program has had so far."""
    status = Path("/proc/self/status")
    if status.exists():  # where `getrusage` counts what the parent had when it started this process
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def extra_peak(function: Callable[[], Any]) -> float:
    """Bytes that a function adds to the peak of this process; NaN where that cannot be seen."""
    gc.collect()
    # Memory in use is raised to the peak so far, so that all that comes on top is seen.
    ballast = np.ones(max(0, peak_bytes() - psutil.Process().memory_info().rss), "uint8")
    before = peak_bytes()
    function()
    return float(peak_bytes() - before) if ballast.size else float("nan")


def in_subprocess(module: str, *arguments: str, **environment: str) -> Any:
    """The last line that a module prints, as JSON: for peaks of memory, which only ever rise."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
