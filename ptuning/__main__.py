"""`python -m ptuning` is `ptuning`."""

import sys

from ptuning.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
