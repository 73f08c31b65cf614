"""The mistakes a user can make, each told in one line: what came, what was expected, what to do.

Knows nothing of models, files or the command line; the command line turns every one of these into exit status 2.
"""

from collections.abc import Sequence

_LONGEST_WORD, _LONGEST_LINE = 400, 3000  # characters of a message that are told


class PTuningError(Exception):
    """A mistake the user can mend.

    Args:
        received: What came, naming the file, key or value.
        expected: What was expected in its place.
        remedy: What the user can do about it, as a sentence without its full stop.
    """

    def __init__(self, received: str, expected: str, remedy: str) -> None:
        self.received, self.expected, self.remedy = (_one_line(part) for part in (received, expected, remedy))
        super().__init__(f"{self.received}; expected {self.expected}. {self.remedy}.")


class ConfigError(PTuningError):
    """A setting, or several that do not go together; or several such mistakes, told together.

    Args:
        received: As in `PTuningError`.
        expected: As in `PTuningError`.
        remedy: As in `PTuningError`.
        keys: The settings that are at fault, as dotted keys.
    """

    problems: tuple["ConfigError", ...] = ()
    """The single mistakes of an error that was made by `together`."""

    def __init__(self, received: str, expected: str, remedy: str, keys: Sequence[str] = ()) -> None:
        super().__init__(received, expected, remedy)
        self.keys = tuple(keys)

    def about(self, *keys: str) -> "ConfigError":
        """The same mistake, with the settings that are at fault."""
        return ConfigError(self.received, self.expected, self.remedy, keys)

    @classmethod
    def together(cls, problems: Sequence["ConfigError"], source: str, remedy: str = "Correct them") -> "ConfigError":
        """One error for all problems.

        Args:
            problems: The mistakes, at least one; those that were put together before are taken apart.
            source: The config's name.
            remedy: What to do about several mistakes.
        """
        single = [each for problem in problems for each in problem.problems or (problem,)]
        if len(single) == 1:
            error = cls(f"{source}: {single[0].received}", single[0].expected, single[0].remedy)
        else:
            told = " ".join(f"({i}) {each.received}, expected {each.expected};" for i, each in enumerate(single, 1))
            error = cls(f"{source} has {len(single)} mistakes: {told.rstrip(';')}", "a config without them", remedy)
        error.problems = tuple(single)
        error.keys = tuple(dict.fromkeys(key for each in single for key in each.keys))
        return error

    @classmethod
    def raise_any(cls, problems: Sequence["ConfigError"]) -> None:
        """Raises the problems together, if there are any."""
        if problems:
            raise cls.together(problems, "the config")


class DataError(PTuningError):
    """A data file, or a row of one, that cannot be used."""


class ModelError(PTuningError):
    """A base model that cannot be loaded or cannot do what is asked of it."""


class PromptError(PTuningError):
    """A saved prompt that cannot be read, or does not fit the base model."""


class TrainingError(PTuningError):
    """A training run that cannot start or cannot go on."""


class OutOfMemoryError(PTuningError):
    """Rows that do not fit into the device's memory.

    Args:
        num_rows: How many rows were read at once.
        num_tokens: Their tokens, padding and virtual tokens included.
    """

    def __init__(self, num_rows: int, num_tokens: int) -> None:
        self.num_rows, self.num_tokens = num_rows, num_tokens
        rows, fewer = f"{num_rows} rows", f"Set max_batch_tokens to {num_tokens // 2} or less, or lower batch_size"
        if num_rows == 1:
            rows, fewer = "1 row", "Shorten the row, or quantize the model"
        received = f"out of memory with {rows} ({num_tokens:,} tokens) at once"
        super().__init__(received, "rows that fit into the device's memory", fewer)


class ServerError(PTuningError):
    """A server that cannot be reached, serves another model, or refuses what it is asked."""


class FileError(PTuningError):
    """A file or directory that cannot be written."""


class DiskFullError(FileError):
    """A file that cannot be written because the disk is full."""


def _one_line(text: str) -> str:
    """The text on one line; of long words, and of a long text, the middle is left out."""
    line = " ".join(_shortened(word, _LONGEST_WORD) for word in text.split())
    return _shortened(line, _LONGEST_LINE)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"
