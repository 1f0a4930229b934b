"""What a file of facts can give: branching factor, its bound on phi, and phi, for all relations and for each.

    python scripts/describe_facts.py RUN                 # or a configuration, CONFIG.yaml
    python scripts/describe_facts.py facts.csv --format csv --task composition --phi 2

The first describes the data of a run's `config.yaml`, or of a configuration that states its data.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grok.data import RealFacts, SyntheticKnowledge
from grok.data.fact_regime import FactRegime
from grok.data.fact_report import describe
from grok.errors import BadInput
from grok.reading import read_yaml

USUAL = {"format": "2wiki", "task": "composition", "phi": 1.0}
REGIMES = {f"grok.data.{one.__name__}": one for one in (RealFacts, SyntheticKnowledge)}


def regime(arguments: argparse.Namespace) -> FactRegime:
    """The regime that the command line names."""
    path = Path(arguments.file)
    asked = {key: getattr(arguments, key) for key in USUAL}
    if not (path.is_dir() or path.suffix in (".yaml", ".yml")):
        return RealFacts(path=path, **{key: USUAL[key] if value is None else value for key, value in asked.items()})
    path = path / "config.yaml" if path.is_dir() else path
    if further := [key for key, value in asked.items() if value is not None]:
        raise BadInput(f"--{further[0]}: {path} says it; leave it out")
    config = read_yaml(path)
    data = config.get("data") if isinstance(config, dict) else None
    kind = data.get("class_path") if isinstance(data, dict) else None
    if kind not in REGIMES:
        raise BadInput(f"{path}: data of {kind}; give a run or a configuration of {' or '.join(REGIMES)}")
    given = {key: value for key, value in (data.get("init_args") or {}).items() if key != "encoding"}
    return REGIMES[kind](**{"seed": config.get("seed_everything", 0), **given})


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="a configuration, or a file of facts")
    parser.add_argument("--format", help="2wiki unless said", choices=["2wiki", "csv"])
    parser.add_argument("--task", help="composition unless said", choices=["composition", "comparison"])
    parser.add_argument("--phi", type=float, help="1 unless said")
    try:
        print(describe(regime(parser.parse_args()).lessons))
    except (BadInput, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
