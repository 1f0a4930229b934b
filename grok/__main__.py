"""`python -m grok` and the console script `grok`."""

import sys

from grok.cli import main


def run() -> None:
    """Run the command line and exit with its status."""
    sys.exit(main())


if __name__ == "__main__":
    run()
