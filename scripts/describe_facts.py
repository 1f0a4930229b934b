"""What a file of facts can give: branching factor, its bound on phi, and phi, for all relations and for each.

    python scripts/describe_facts.py RUN_OR_CONFIG.yaml
    python scripts/describe_facts.py facts.csv --format csv --task composition --phi 2

The first describes the data of a run's `config.yaml`, or of a configuration that states its data.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from grok.data import RealFacts, SyntheticKnowledge
from grok.data.fact_regime import FactRegime
from grok.data.fact_report import describe
from grok.errors import BadInput

REGIMES = {f"grok.data.{one.__name__}": one for one in (RealFacts, SyntheticKnowledge)}


def regime(arguments: argparse.Namespace) -> FactRegime:
    """The regime that the command line names."""
    path = Path(arguments.file)
    if path.suffix != ".yaml":
        return RealFacts(path=path, format=arguments.format, task=arguments.task, phi=arguments.phi)
    config = yaml.safe_load(path.read_text())
    data = config["data"]
    if data["class_path"] not in REGIMES:
        raise BadInput(f"{path}: data of {data['class_path']}; give a run of {' or '.join(REGIMES)}")
    given = {key: value for key, value in data["init_args"].items() if key != "encoding"}
    return REGIMES[data["class_path"]](**{"seed": config.get("seed_everything", 0), **given})


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="a configuration, or a file of facts")
    parser.add_argument("--format", default="2wiki", choices=["2wiki", "csv"])
    parser.add_argument("--task", default="composition", choices=["composition", "comparison"])
    parser.add_argument("--phi", type=float, default=1.0)
    try:
        print(describe(regime(parser.parse_args()).lessons))
    except (BadInput, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
