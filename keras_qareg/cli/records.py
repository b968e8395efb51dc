"""What `compress --json` writes, for programs."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from keras_qareg import __version__
from keras_qareg.cli.gate import Verdict

_OF_FILE = (
    *("path", "bytes", "gzip_bytes", "zstd_bytes", "float_bytes", "batch_size"),
    *("runtime_version", "time_ratio", "arena_bytes", "npu_bytes", "npu_weight_bytes"),
)
_OF_KERNEL = ("path", "form", "levels", "bytes", "exact")


def record(
    options: argparse.Namespace,
    its: dict[str, Any],
    plan: Any,
    stages: Sequence[Any],
    verdict: Verdict | None,
) -> dict[str, Any]:
    """What was asked for and found, without the file.

    Args:
        options: The words of the command line.
        its: What `sharing` made of them.
        plan: The plan of a budget, or `None`.
        stages: What the network was worth after each step.
        verdict: What became of the accuracy, or `None`.
    """
    return {
        "keras_qareg": __version__,
        "model": options.source,
        "method": None if options.data is None else options.method or "auto",
        "seed": options.seed,
        "shrink": options.shrink,
        **its,
        "plan": None if plan is None else plan_record(plan),
        "stages": [dataclasses.asdict(stage) for stage in stages],
        "before": stages[0].results if stages else {},
        "after": stages[-1].results if stages else {},
        "accuracy": None if verdict is None else _accuracy(verdict),
        "file": None,
    }


def plan_record(plan: Any) -> dict[str, Any]:
    """A plan, without its curve."""
    return {
        "form": plan.weights,
        "bytes": plan.bytes,
        "loss": plan.loss,
        "kernels": [dataclasses.asdict(row) for row in plan.rows],
    }


def file_record(report: Any) -> dict[str, Any]:
    """What an `ExportReport` says, for the most part."""
    return {
        "form": report.weights,
        **{name: getattr(report, name) for name in _OF_FILE},
        "kernels": [{name: getattr(k, name) for name in _OF_KERNEL} for k in report.kernels],
        "proof": {
            "max_output_difference": report.max_output_difference,
            "output_range": report.output_range,
        },
    }


def _accuracy(verdict: Verdict) -> dict[str, Any]:
    return {
        "float": dict(verdict.before),
        "compressed": dict(verdict.after),
        "drop": verdict.drop,
        "most": verdict.most,
        "passed": verdict.passed,
    }
