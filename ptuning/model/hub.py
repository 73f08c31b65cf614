"""Names on the hub, and whether the hub answers at all.

Knows nothing of what a repository holds.
"""

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

_MOST_SECONDS = 3.0  # that each address of the hub may take to answer


def is_hub_name(name: str) -> bool:
    """Whether a text can name a repository: `user/name` or `user/name@revision`."""
    repository, _, _ = name.partition("@")
    try:
        validate_repo_id(repository)
    except HFValidationError:
        return False
    return "/" in repository


def hub_answers() -> bool:
    """Whether the hub can be asked; without a network, which takes a library a minute to notice, it cannot."""
    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies():  # they know the way
        return True
    hub = urlsplit(constants.ENDPOINT)
    port = hub.port or (80 if hub.scheme == "http" else 443)
    try:
        socket.create_connection((hub.hostname or "", port), _MOST_SECONDS).close()
    except OSError:
        return False
    return True
