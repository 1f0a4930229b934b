"""What every benchmark prints and writes: the machine, versions and command, a table, and the same as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "lightning", "transformers")


def smoke_option(parser: argparse.ArgumentParser) -> None:
    """`--smoke`: sizes at which a benchmark runs in seconds and shows only that it runs; and `--json`."""
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that the benchmark runs")
    parser.add_argument("--json", type=Path, default=None, help="where to write; by default runs/benchmark/NAME.json")


class Report:
    """Prints the rows of a table as they come, and writes them.

    Args:
        name: of the benchmark.
        options: as parsed.
        device: whose name is told.
        threads: of torch, if other processes measure.
    """

    def __init__(self, name: str, options: argparse.Namespace, device: str = "cpu", threads: int | None = None) -> None:
        self.path = options.json or Path("runs/benchmark") / f"{name}.json"
        self.rows: list[dict[str, Any]] = []
        self.notes: list[dict[str, Any]] = []
        self.about = {
            "benchmark": name,
            "date": date.today().isoformat(),
            "device": device_name(device),
            "cores": os.cpu_count(),
            "threads": threads or torch.get_num_threads(),
            "python": platform.python_version(),
            **{package: _version(package) for package in PACKAGES},
            "command": shlex.join(["python", *sys.argv]),
        }
        print(", ".join(f"{key} {value}" for key, value in self.about.items() if value), flush=True)

    def row(self, row: dict[str, Any]) -> None:
        """Add a line; the first one gives the columns."""
        if not self.rows:
            print("| " + " | ".join(row) + " |\n|" + "---|" * len(row))
        self.rows.append(row)
        print("| " + " | ".join(map(shown, row.values())) + " |", flush=True)

    def note(self, note: dict[str, Any]) -> None:
        """Add what goes into the file only."""
        self.notes.append(note)

    def end(self, *lines: str) -> None:
        """Print closing lines, and write the file."""
        for line in lines:
            print(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {**self.about, "rows": self.rows, "notes": self.notes, "lines": lines}
        self.path.write_text(json.dumps(content, indent=1) + "\n")
        print(f"written to {self.path}", flush=True)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def shown(value: Any) -> str:
    """A cell of a table: three significant digits, `–` where there is nothing."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def device_name(device: str) -> str:
    """The name of a GPU, or of the processor."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (FileNotFoundError, StopIteration):
        return platform.processor() or platform.machine()


def synchronize(device: str) -> None:
    """Wait until the device has done its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], device: str = "cpu") -> float:
    """Wall seconds of one call, the device's work included."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def peak_gigabytes(device: str = "cpu") -> float:
    """Largest memory so far: of the GPU, or of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def in_a_process(arguments: list[str]) -> Any:
    """Run this script again with `arguments`, in a process of its own; returns what it prints after `RESULT`."""
    output = subprocess.run(
        [sys.executable, sys.argv[0], *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return json.loads(output.rpartition("RESULT ")[2])
