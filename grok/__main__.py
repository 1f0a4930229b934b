"""`python -m grok` and the console script `grok`."""

import sys

from grok.help import HELP_TEXT, asks_for_help


def run() -> None:
    """Run the command line and exit with its status."""
    if asks_for_help(sys.argv[1:]):
        print(HELP_TEXT, end="")
        return
    from torch import distributed

    from grok.cli import main

    status = main()
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()  # threads of an open one can abort the interpreter as it ends
    sys.exit(status)


if __name__ == "__main__":
    run()
