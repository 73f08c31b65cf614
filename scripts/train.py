"""Trains a soft prompt; the same as `ptuning train`."""

import sys

from ptuning.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
