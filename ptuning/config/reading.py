"""Reads a config class from YAML and command-line overrides, telling every mistake at once.

Knows nothing of which settings there are. A config class is a frozen dataclass of sections, themselves frozen
dataclasses of settings; a setting is named by its dotted key, `train.max_steps`.
"""

import dataclasses
import difflib
from argparse import SUPPRESS
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, SimpleNamespace
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar, cast, get_args, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser, get_loader, set_parsing_settings

from ptuning.errors import ConfigError, FileError
from ptuning.files import read_regular

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MOST_BYTES, _MOST_LEVELS, _MOST_ALIASES = 1 << 20, 20, 20


class ConfigClass(Protocol):
    """What a config class has besides its sections."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    command: ClassVar[str]
    """The command whose help lists the settings."""

    @staticmethod
    def contradictions(sections: Any) -> list[ConfigError]:
        """What contradicts across sections; they are attributes of `sections`, their settings attributes of them.

        Settings that are missing or have a wrong type are replaced by their default or an empty value. A mistake that
        names such a setting among its keys is not told.
        """


Config = TypeVar("Config", bound=ConfigClass)


class WholeConfig:
    """A config class that can be read and written; its fields are its sections."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    command: ClassVar[str]
    """The command whose help lists the settings."""

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Reads a config file.

        Args:
            path: A YAML file with the class's sections.
            overrides: Dotted settings that win over the file's, as on the command line: `--train.max_steps 50` or
                `--train.max_steps=50`.

        Raises:
            ConfigError: With everything that is wrong with the settings, in one line.
        """
        return from_yaml(cls, path, overrides)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], source: str = "the settings") -> Self:
        """Builds a config from settings nested as in YAML, or with dotted keys; raises `ConfigError` like `from_yaml`.

        Args:
            settings: `{"train": {"max_steps": 50, …}, …}` or `{"train.max_steps": 50, …}`.
            source: The settings' name, for errors.
        """
        return from_settings(cls, settings, source)

    def to_yaml(self) -> str:
        """The whole config, defaults included."""
        return to_yaml(self)

    @staticmethod
    def contradictions(sections: Any) -> list[ConfigError]:
        """What contradicts across sections, as in `ConfigClass`."""
        raise NotImplementedError


def from_yaml(kind: type[Config], path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a config file.

    Args:
        kind: The config class.
        path: A YAML file with the class's sections.
        overrides: Dotted settings that win over the file's: `--train.max_steps 50` or `--train.max_steps=50`.

    Raises:
        ConfigError: With everything that is wrong with the settings, in one line.
    """
    settings = {**_of_yaml(Path(path), _names(kind)), **_of_overrides(overrides)}
    return from_settings(kind, settings, f"{path} with the command line's settings" if overrides else str(path))


def from_settings(kind: type[Config], settings: Mapping[str, Any], source: str) -> Config:
    """Builds a config from dotted keys.

    Args:
        kind: The config class.
        settings: Section -> its settings, as in YAML, or dotted key -> value: `{"train": {"max_steps": 50}}` or
            `{"train.max_steps": 50}`.
        source: The settings' name, for errors.

    Raises:
        ConfigError: With everything that is wrong with the settings, in one line.
    """
    settings = dotted(kind, settings)
    values, problems = _checked(kind, settings)
    missing = [key for key in _required(kind) if key not in values]
    unusable = {key for key in settings if key not in values} | set(missing)
    problems += [
        ConfigError(f"no {key}", "a value for it", f"Write {key} in the config", keys=(key,))
        for key in missing
        if key not in settings
    ]
    types = _types(kind)
    usable = values | {key: _empty(types[key]) for key in missing}
    sections, drafts, found = {}, {}, list[ConfigError]()
    for field in dataclasses.fields(kind):
        own = _section(usable, field.name)
        drafts[field.name] = SimpleNamespace(**(defaults(field.type) | own))
        try:
            sections[field.name] = cast(Any, field.type)(**own)
        except ConfigError as error:
            found += error.problems or (error,)
    found += kind.contradictions(SimpleNamespace(**drafts))
    problems += [each for each in found if not unusable & set(each.keys)]
    if problems:
        raise ConfigError.together(problems, source, f"Correct them; {kind.command} --help shows every setting")
    return kind(**sections)


def dotted(kind: type[Config], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their dotted keys; those that are nested as in YAML are taken out of their sections."""
    names = _names(kind)
    nested = {key: value for key, value in settings.items() if key in names}
    return {**_flat(nested), **{key: value for key, value in settings.items() if key not in names}}


def to_yaml(config: Any) -> str:
    """A whole config as YAML, defaults included."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def parser(kind: type[Config], description: str, flags: Mapping[str, str]) -> ArgumentParser:
    """The parser that prints a command's help.

    Args:
        kind: The config class; every setting is shown with its type, default and explanation.
        description: What the command does.
        flags: The command's options without a value -> their explanations.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    built = ArgumentParser(prog=kind.command, exit_on_error=False, description=description, print_config=None)
    built.add_argument("--config", help="the YAML file", metavar="FILE")
    for flag, explanation in flags.items():
        built.add_argument(flag, action="store_true", help=explanation)
    built.add_class_arguments(cast(Any, kind))
    sections = {f"--{name}" for name in _names(kind)}
    for action in built._actions:  # a section is written in the config file, not given as a file of its own
        if sections & set(action.option_strings):
            action.help = SUPPRESS
    return built


def defaults(section: Any) -> dict[str, Any]:
    """The settings of a section that have a default, and their defaults."""
    found = {}
    for field in dataclasses.fields(section):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


# Files and command lines


def _of_yaml(path: Path, sections: Sequence[str]) -> dict[str, Any]:
    """The settings of a file; raises `ConfigError` where it is missing, is not YAML of sections, or repeats a key."""
    if not path.is_file():
        raise ConfigError(f"config file {path} does not exist", "a YAML file", "Check the path given to --config")
    try:
        text = read_regular(path, _MOST_BYTES).decode("utf-8")
        _require_plain(text)
        content, twice = get_loader("yaml")(text), _keys_given_twice(yaml.compose(text, Loader=_LOADER))
    except FileError as error:
        raise ConfigError(error.received, "a YAML file", error.remedy) from error
    except (yaml.YAMLError, ValueError) as error:  # of the text, or of a number or a date in it
        raise ConfigError(f"{path} is not YAML ({error})", "a YAML file", "Correct its syntax") from None
    if twice:
        raise ConfigError(f"{path} has {twice[0]} twice", "each setting once", "Remove one of them")
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} holds {type(content).__name__}, not sections",
            f"the sections {', '.join(sections[:-1])} and {sections[-1]}",
            "Write them",
        )
    return _flat(content)


def _require_plain(text: str) -> None:
    """Raises `YAMLError` for what YAML could grow into, or never end: deep nesting, many aliases, one within itself."""
    is_open, depth, num_aliases = list[str | None](), 0, 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            is_open.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            is_open.pop()
        elif isinstance(event, yaml.AliasEvent):
            num_aliases += 1
        depth = max(depth, len(is_open))
        if depth > _MOST_LEVELS or num_aliases > _MOST_ALIASES:
            raise yaml.YAMLError(f"more than {_MOST_LEVELS} levels or {_MOST_ALIASES} aliases")
        if isinstance(event, yaml.AliasEvent) and event.anchor in is_open:
            raise yaml.YAMLError(f"the alias {event.anchor} within itself")


def _keys_given_twice(node: yaml.Node | None) -> list[str]:
    """Where a mapping has a key twice, of which YAML would silently take the last: the keys and their lines."""
    if not isinstance(node, yaml.MappingNode):
        return []
    counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
    twice = [
        f"{key.value} (line {key.start_mark.line + 1})"
        for key, _ in node.value
        if isinstance(key, yaml.ScalarNode) and counts[key.value] > 1
    ]
    return twice[1:] + [each for _, value in node.value for each in _keys_given_twice(value)]


def _flat(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Section -> key -> value, as dotted keys."""
    flat = {}
    for section, settings in content.items():
        if isinstance(settings, Mapping):
            flat.update({f"{section}.{key}": value for key, value in settings.items()})
        elif settings is not None:
            flat[str(section)] = settings
    return flat


def _of_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Reads `--section.key value` and `--section.key=value`; the values are text, typed later."""
    settings = {}
    arguments = list(overrides)
    while arguments:
        argument = arguments.pop(0)
        name, equals, value = argument.partition("=")
        if not name.startswith("--") or not (equals or arguments):
            raise ConfigError(
                f"command-line argument {argument!r}", "settings as --section.key value", "Give each setting its value"
            )
        settings[name.removeprefix("--")] = value if equals else arguments.pop(0)
    return settings


# Settings


def _checked(kind: type[Config], settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[ConfigError]]:
    """The settings that can be used, with their types applied, and what is wrong with the others."""
    types = _types(kind)
    values, problems = {}, []
    for key, value in settings.items():
        if key not in types:
            expected = _nearest(key, types) or f"a setting that {kind.command} --help shows"
            problems.append(ConfigError(f"unknown setting {key}", expected, "Correct or remove it", keys=(key,)))
            continue
        try:
            values[key] = _typed(key, types[key], value)
        except ConfigError as error:
            problems.append(error)
    return values, problems


def _nearest(key: str, known: Iterable[str]) -> str | None:
    """The known key that an unknown one probably means; its own section wins over others.

    Its name is spelled alike, or has these initials (`lr`), or has this name within it (`epochs`).
    """
    section, _, name = key.rpartition(".")
    own_first = sorted(known, key=lambda each: not each.startswith(f"{section}."))
    names = {each.partition(".")[2]: each for each in reversed(own_first)}
    longer = [each for each in reversed(names) if len(name) > 3 and name in each]
    initials = [each for each in reversed(names) if len(name) > 1 and _initials(each) == name]
    meant = [*longer, *initials, *difflib.get_close_matches(name, names, n=1)]
    return names[meant[0]] if meant else None


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("_"))


def _typed(key: str, kind: Any, value: Any) -> Any:
    """A setting's value with its type applied; raises `ConfigError` where it does not have that type."""
    wrong = ConfigError(f"{key}: {value!r}", _type_name(kind), "Correct its type or value", keys=(key,))
    leaf = ArgumentParser(exit_on_error=False)
    leaf.add_argument("--value", type=kind)
    try:
        typed = leaf.parse_object({"value": value}).value
    except ArgumentError:
        raise wrong from None
    if typed is None and NoneType not in get_args(kind):
        raise wrong
    return _with_text_keys(key, typed) if isinstance(typed, dict) else typed


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if any(get_origin(each) is Literal for each in get_args(kind)):
        choices = [get_args(each) if get_origin(each) is Literal else (_type_name(each),) for each in get_args(kind)]
        return " | ".join(name for names in choices for name in names).replace("NoneType", "null")
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("None", "null")


def _with_text_keys(key: str, mapping: Mapping[Any, Any]) -> dict[str, Any]:
    """The mapping with integer keys as text, as in the rows; YAML reads yes, no, on and off as true and false."""
    for name in mapping:
        if isinstance(name, bool) or not isinstance(name, str | int):
            received = f"{key}: the unquoted key {name!r}"
            raise ConfigError(received, "text or integers as keys", "Put it in quotes", keys=(key,))
    return {str(name): value for name, value in mapping.items()}


def _empty(kind: Any) -> Any:
    """A value that stands in for a required setting of that type."""
    origin, choices = get_origin(kind), get_args(kind)
    if origin is Literal:
        return choices[0]
    if NoneType in choices:
        return None
    return (origin or kind)()


# Config classes


def _names(kind: type[Config]) -> list[str]:
    """The names of the sections."""
    return [field.name for field in dataclasses.fields(kind)]


def _types(kind: type[Config]) -> dict[str, Any]:
    """Dotted key -> type, for every setting."""
    return {
        f"{section.name}.{field.name}": field.type
        for section in dataclasses.fields(kind)
        for field in dataclasses.fields(cast(Any, section.type))
    }


def _required(kind: type[Config]) -> list[str]:
    """The dotted keys of the settings that have no default."""
    optional = {f"{each.name}.{key}" for each in dataclasses.fields(kind) for key in defaults(each.type)}
    return [key for key in _types(kind) if key not in optional]


def _section(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The settings of a section, without its name before them."""
    return {key.partition(".")[2]: value for key, value in settings.items() if key.startswith(f"{name}.")}
