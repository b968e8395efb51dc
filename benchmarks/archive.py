"""How near archives are to the entropy bound, and how fast they are read.

    python -m benchmarks.archive --out results

Codes the indices of a Laplace-distributed kernel of some millions of weights, shared by k-means, and
decodes them again, in turn with zstd on the same float32 values (what a compressed download of a
`.tflite` costs). Prints coded bytes relative to the entropy bound, megabytes of float32 weights a second
on one core, and the ratio to zstd of the same round.
"""

import json
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np
import zstandard
from keras_qareg.export.archive.coding import decode_indices, encode_indices

from benchmarks import results
from keras_qareg.numerics.clustering import kmeans
from keras_qareg.numerics.codebook import Codebook


def seconds(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def row(levels: int, size: int, rounds: int) -> dict[str, Any]:
    """Sizes and times of one kernel."""
    weights = np.random.default_rng(0).laplace(size=size).astype("float32")
    book = Codebook.nearest(weights, kmeans(weights, levels))
    coding, coded = encode_indices(book.indices, levels)
    packed = zstandard.compress(book.weights.tobytes(), 19)

    def decode() -> np.ndarray:
        return book.centroids[decode_indices(coding, coded, levels, size)]

    if not np.array_equal(decode(), book.weights):
        raise RuntimeError("The decoded weights are other ones")
    times = [
        (seconds(decode), seconds(lambda: zstandard.decompress(packed))) for _ in range(rounds)
    ]
    ours, theirs = np.array(times).T
    encoding = seconds(lambda: encode_indices(book.indices, levels))
    return {
        "levels": levels,
        "weights": size,
        "coding": coding,
        "bytes": len(coded),
        "to_bound": len(coded) * 8 / (size * book.entropy),
        "to_zstd_19": len(coded) / len(packed),
        "decoded_MB_s": 4e-6 * size / float(np.median(ours)),
        "time_to_zstd": float(np.median(ours / theirs)),
        "encoded_MB_s": 4e-6 * size / encoding,
    }


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--levels", type=int, nargs="+", default=[2, 4, 16, 64, 256])
    parser.add_argument("--weights", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    for levels in arguments.levels:
        rows.append(row(levels, arguments.weights, arguments.rounds))
        print(json.dumps(rows[-1]), flush=True)
    lines = [
        (
            str(r["levels"]),
            r["coding"],
            f"{r['to_bound']:.4f}",
            f"{r['to_zstd_19']:.3f}",
            f"{r['decoded_MB_s']:.0f}",
            f"{r['time_to_zstd']:.2f}",
        )
        for r in rows
    ]
    header = ("levels", "coding", "bytes/bound", "bytes/zstd -19", "MB/s", "time/zstd")
    results.save(arguments.out, "archive", rows, header, lines)


if __name__ == "__main__":
    main()
