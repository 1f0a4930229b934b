"""Seconds until something happens: imports, `grok --help`, `grok fit --help`, and a run of one optimizer step.

Each in a fresh process, several times in turn; the table has the least and the median.

    python scripts/benchmark/startup.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from report import Report, seconds, smoke_option

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    smoke_option(parser)
    options = parser.parse_args()
    python = sys.executable
    with tempfile.TemporaryDirectory() as directory:
        first = [
            python, "-m", "grok", "fit", "--config", str(ROOT / "configs/quickstart.yaml"),
            "--trainer.max_steps", "1", "--run_dir", str(Path(directory) / "run"), "--fresh",
        ]  # fmt: skip
        commands = {
            "import torch": [python, "-c", "import torch"],
            "import lightning": [python, "-c", "import lightning"],
            "import grok.data, grok.models": [python, "-c", "import grok.data, grok.models"],
            "grok --help": [python, "-m", "grok", "--help"],
            "grok fit --help": [python, "-m", "grok", "fit", "--help"],
            "grok fit, one step, evaluated and drawn": first,
        }
        if options.smoke:
            commands, options.repeats = {"grok --help": commands["grok --help"]}, 1
        report = Report("startup", options)
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(options.repeats):
            for name, command in commands.items():

                def work(command: list[str] = command) -> None:
                    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)

                times[name].append(seconds(work))
    for name, taken in times.items():
        report.row({"what": name, "least s": min(taken), "median s": statistics.median(taken)})
    report.end()


if __name__ == "__main__":
    main()
