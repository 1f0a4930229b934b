"""`python -m grok` and the console script `grok`."""

import sys

from torch import distributed

from grok.cli import main


def run() -> None:
    """Run the command line and exit with its status."""
    status = main()
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()  # threads of an open one can abort the interpreter as it ends
    sys.exit(status)


if __name__ == "__main__":
    run()
