"""Downloads and prepares the demo's model and texts: `python scripts/fetch_assets.py [--assets DIR]`.

Knows nothing of where they come from; that is `demo_assets`.
"""

import argparse
import sys
from pathlib import Path

from demo_assets import fetch

from ptuning.errors import PTuningError


def main() -> int:
    """Runs the command and returns its exit status: 0, 2 for a mistake the user can mend, 130 when interrupted."""
    default = Path(__file__).resolve().parents[1] / "assets"
    parser = argparse.ArgumentParser(description="Download and prepare the demo's model and texts.")
    parser.add_argument(
        "--assets", type=Path, metavar="DIR", default=default, help="the folder to fill (default: %(default)s)"
    )
    arguments = parser.parse_args()
    try:
        fetch(arguments.assets)
    except PTuningError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; running this again goes on from what is complete.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
