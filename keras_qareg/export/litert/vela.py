"""What Vela, Arm's compiler for Ethos-U NPUs, makes of a full-integer file: how large it is there.

Vela runs in a process of its own, where its package `ethos-u-vela` or its command `vela` is installed.
"""

from __future__ import annotations

import csv
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ACCELERATORS = (
    *("ethos-u55-32", "ethos-u55-64", "ethos-u55-128", "ethos-u55-256"),
    *("ethos-u65-256", "ethos-u65-512"),
    *("ethos-u85-128", "ethos-u85-256", "ethos-u85-512", "ethos-u85-1024", "ethos-u85-2048"),
)
_SECONDS = 600


@dataclass(frozen=True)
class Compiled:
    """What became of a file.

    Attributes:
        said: One line for people: what was found, or why nothing was.
        bytes: The size of the file that Vela made, `None` if there is none.
        weight_bytes: How many of these are weights as Vela packs them.
        cpu_operators: How many operators are left to the CPU.
    """

    said: str
    bytes: int | None = None
    weight_bytes: int | None = None
    cpu_operators: int | None = None


def compiled(content: bytes, accelerator: str) -> Compiled:
    """Has Vela compile a file, and measures what it made.

    Args:
        content: A full-integer `.tflite` file.
        accelerator: One of `ACCELERATORS`.

    Returns:
        A `Compiled`, also where Vela is not installed or fails: the file is none the worse for it.
    """
    command = _command()
    if command is None:
        return Compiled("not compiled by Vela (`pip install keras-qareg[vela]` to have it done)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.tflite").write_bytes(content)
        words = [*command, "model.tflite", "--accelerator-config", accelerator]
        try:
            done = subprocess.run(
                [*words, "--output-dir", "."],
                cwd=folder,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return Compiled(f"not compiled by Vela for {accelerator} ({type(error).__name__})")
        if done.returncode:
            last = (done.stderr or done.stdout).strip().split("\n")[-1]
            return Compiled(f"not compiled by Vela for {accelerator} ({last})")
        try:
            return _read(folder, accelerator, done.stdout)
        # Another version may write other files.
        except (OSError, LookupError, ValueError, StopIteration) as error:
            return Compiled(f"not measured for {accelerator} ({type(error).__name__}: {error})")


def _command() -> list[str] | None:
    if importlib.util.find_spec("ethosu") is not None:
        return [sys.executable, "-P", "-m", "ethosu.vela"]
    program = shutil.which("vela")
    return None if program is None else [program]


def _read(folder: Path, accelerator: str, printed: str) -> Compiled:
    size = (folder / "model_vela.tflite").stat().st_size
    with next(folder.glob("model_summary_*.csv")).open(newline="") as file:
        weights = round(float(next(csv.DictReader(file))["total_npu_encoded_weights"]))
    on_cpu, on_npu = (
        int(re.findall(rf"^{kind} operators = (\d+)", printed, re.M)[-1]) for kind in ("CPU", "NPU")
    )
    where = f"{on_cpu} of {on_cpu + on_npu} operators left to the CPU"
    said = f"Vela for {accelerator}: {size:,} bytes, {weights:,} of them weights; {where}"
    return Compiled(said, size, weights, on_cpu)
