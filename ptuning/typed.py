"""JSON whose types are checked at the door, strictly, by pydantic.

Knows nothing of what it means.
"""

import functools
import json
import math
from typing import Any, NoReturn


def read_json(text: bytes, kind: type) -> dict[str, Any]:
    """A JSON object as plain data.

    Args:
        text: UTF-8.
        kind: A dataclass whose fields are the keys, with their types: no text is taken for a number, no number is NaN
            or infinite. Keys that it does not name may hold anything.

    Raises:
        ValueError: Saying what is wrong, in one line.
    """
    from pydantic import ValidationError

    try:
        content: dict[str, Any] = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        _adapter(kind).validate_json(text, strict=True)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(f"{place}: {_shown(first['input'])}, {first['msg'][:1].lower()}{first['msg'][1:]}") from None
    return content


@functools.cache
def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
