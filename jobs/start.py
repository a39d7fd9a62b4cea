"""The console script `stillhouse`: loads the commands, and handles Ctrl-C from the first moment. Costs nothing."""

import signal
import sys


def main() -> int:
    """Exit code of the command line; 130 after Ctrl-C, even before the commands are loaded."""
    try:
        from jobs import cli

        return cli.main()
    except KeyboardInterrupt:
        sys.stderr.write("stopped by Ctrl-C\n")
        return 128 + signal.SIGINT
