"""The command line: parses, calls, prints; no logic of its own.

Exit status: 0 done; 2 a user's mistake, told in one line on stderr; 130 interrupted.
"""

import argparse
import errno
import os
import sys
from collections.abc import Sequence

import ptuning
from ptuning.cli import compare, distill, evaluate, export, harden, init, inspect, predict, train
from ptuning.cli.arguments import Parser, require_paths, with_dashes
from ptuning.cli.streams import OutputError, drop_output, plain_streams
from ptuning.errors import PTuningError

_DESCRIPTION = "Soft-prompt tuning for frozen language models."
_OF_CONFIGS = {"train": train, "compare": compare, "distill": distill}  # commands whose options are settings
_SECONDS_IN_A_LOG = "10"  # between two states of a progress bar
_EXAMPLES = """\
examples:
  ptuning init tickets.csv                               write a commented config for your own data: tickets.yaml
  ptuning train --config configs/movie_reviews.yaml      train a soft prompt; it lies in runs/movie-reviews/prompt
  ptuning evaluate runs/movie-reviews --baseline         its accuracy, beside that of the same words without it
  ptuning predict runs/movie-reviews --input "a gripping film"
  ptuning inspect runs/movie-reviews --data assets/movie_reviews/test.csv --html report.html
  ptuning harden runs/movie-reviews --data assets/movie_reviews/test.csv
  ptuning export runs/movie-reviews --to merged --output models/film    a model for other engines
  ptuning compare --config configs/compare_trec.yaml     when to fine-tune: other ways on the same rows
  ptuning distill --config configs/distill_trec.yaml     a long text becomes a few virtual tokens

'ptuning COMMAND --help' explains a command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status."""
    given = with_dashes(sys.argv[1:] if arguments is None else arguments)
    with plain_streams():
        if not sys.stderr.isatty():
            os.environ.setdefault("TQDM_MININTERVAL", _SECONDS_IN_A_LOG)  # read when tqdm is imported
        return _status(given)


def _status(given: list[str]) -> int:
    """Runs a command; its exit status."""
    try:
        if given and given[0] in _OF_CONFIGS:
            _OF_CONFIGS[given[0]].run(given[1:])
        elif given in ([], ["help"]):
            _parser().print_help()
        else:
            parsed = _parser().parse_args(given)
            require_paths(parsed)
            parsed.run(parsed)
        sys.stdout.flush()
    except OutputError as error:
        drop_output()
        if error.has_no_reader:
            return 0
        _tell(f"standard output cannot be written ({error}); expected room for it. Free some space.")
        return 2
    except PTuningError as error:
        _tell(str(error))
        return 2
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        received = f"the name {error.filename}, which is too long"
        _tell(str(PTuningError(received, "a name that a file can have", "Correct it")))
        return 2
    except KeyboardInterrupt as interrupt:
        _tell(str(interrupt) or "interrupted")
        return 130
    return 0


def _tell(message: str) -> None:
    print(f"ptuning: {message}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="ptuning", description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=layout)
    parser.add_argument("--version", action="version", version=f"ptuning {ptuning.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    commands.add_parser("train", help="train a soft prompt (ptuning train --help shows every setting)")
    commands.add_parser("compare", help="compare ways to do a task (ptuning compare --help shows every setting)")
    commands.add_parser("distill", help="make a long text virtual tokens (ptuning distill --help shows every setting)")
    for command in (init, evaluate, predict, inspect, harden, export):
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
