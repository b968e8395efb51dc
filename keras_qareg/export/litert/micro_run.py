"""A program of its own: runs files in TFLite Micro, which can end the process that it runs in.

Called with a folder that holds `inputs.npz`, and pairs of a file and the bytes of its arena. Writes the
outputs of run number `n` to `n.npz`; the runtime says on the error output what memory was used.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np


def main() -> None:
    """Runs each file; ends at the first that fails."""
    from tflite_micro import runtime

    folder = Path(sys.argv[1])
    stored = np.load(folder / "inputs.npz")
    inputs = [stored[f"arr_{place}"] for place in range(len(stored.files))]
    runs = zip(sys.argv[2::3], sys.argv[3::3], sys.argv[4::3], strict=True)
    for number, (name, arena, count) in enumerate(runs):
        content = (folder / name).read_bytes()
        interpreter = runtime.Interpreter.from_bytes(content, arena_size=int(arena))
        for place, array in enumerate(inputs):
            interpreter.set_input(array, place)
        interpreter.invoke()
        outputs = [interpreter.get_output(place) for place in range(int(count))]
        np.savez(folder / f"{number}.npz", *outputs)
        interpreter.print_allocations()


if __name__ == "__main__":
    main()
