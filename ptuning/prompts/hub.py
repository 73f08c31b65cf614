"""Fetches a saved prompt from the hub, and uploads one.

Only the files of a saved prompt are fetched, those that say what it is before its tensors. Knows nothing of models.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, errors, snapshot_download
from huggingface_hub.utils import tqdm

from ptuning.errors import PromptError, PTuningError
from ptuning.model import hub_answers, is_hub_name
from ptuning.prompts import storage

_TEXTS = (storage.OWN_FILE, storage.PEFT_FILE, storage.CARD_FILE)
_TENSORS = (storage.WEIGHTS_FILE, storage.ENCODER_FILE)
_LOG_IN = "Check the name; for a private repository log in with hf auth login, set HF_TOKEN, or give token="


class _NoBar(tqdm):
    """A bar that is not shown: a prompt is small."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "disable": True})


def located(name: str | Path, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The directory that a path or a name on the hub stands for; a path that exists always wins.

    Args:
        name: A path, or `user/name` or `user/name@revision`; a `Path` is never a name.
        revision: Branch, tag or commit of a repository; a directory has none.
        token: The hub's token; None or True: the one that was saved by logging in; False: none.

    Raises:
        PromptError: If the hub cannot be asked, has no such prompt or does not show it.
    """
    if isinstance(name, Path) or os.path.exists(name) or not is_hub_name(name):
        return Path(name)
    repository, _, own = name.partition("@")
    if own and revision:
        raise PromptError(f"{name} with revision {revision}", "one revision", "Leave one of them out")
    expected = "a saved prompt's directory, or its name on the hub"
    with _told(f"{name}: no directory here, and", "the hub shows no such repository", expected):
        return _fetched(repository, own or revision, token)


def _fetched(repository: str, revision: str | None, token: str | bool | None) -> Path:
    """The hub cache's directory of a prompt; what it lacks is downloaded."""
    options: dict[str, Any] = {"token": token, "local_files_only": not hub_answers(), "tqdm_class": _NoBar}
    _require_fair_sizes(repository, {**options, "revision": revision})
    found = Path(snapshot_download(repository, revision=revision, allow_patterns=list(_TEXTS), **options))
    if not any((found / file).exists() for file in (storage.OWN_FILE, storage.PEFT_FILE)):
        received = f"{repository} on the hub, with neither {storage.OWN_FILE} nor {storage.PEFT_FILE}"
        raise PromptError(received, "a saved prompt's repository", "Check the name")
    storage.Summary.read(found)  # another kind of adapter may be large
    snapshot_download(repository, revision=found.name, allow_patterns=list(_TENSORS), **options)
    return found


def _require_fair_sizes(repository: str, options: dict[str, Any]) -> None:
    """Raises `PromptError` for a file that is too large, before it is downloaded."""
    try:
        files = snapshot_download(repository, dry_run=True, allow_patterns=[*_TEXTS, *_TENSORS], **options)
    except errors.DryRunError:  # the hub cannot be asked: what is there is read, or the reason is told then
        return
    for file in files:
        most = storage.MOST_TENSOR_BYTES if file.filename in _TENSORS else storage.MOST_JSON_BYTES
        if (file.file_size or 0) > most:
            received = f"{file.filename} of {repository} has {file.file_size:,} bytes"
            raise PromptError(received, f"at most {most:,}", "Check that it is the prompt that you mean")


def upload(
    directory: Path,
    repository: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
) -> str:
    """Uploads a prompt's directory, in place of the prompt that the repository held.

    Args:
        directory: The prompt's directory.
        repository: `user/name`; made where there is none.
        commit_message: The commit's; None: "Upload soft prompt".
        private: Whether a new repository is private; None: as the account has it.
        token: As in `located`.
        revision: The branch; made where there is none. None: main.

    Returns:
        The commit's address.

    Raises:
        PromptError: If the hub cannot be asked or does not allow it.
    """
    names = [*_TEXTS, *_TENSORS]
    with _told(f"{repository} cannot be written:", "the hub refuses", "a repository that the token may write to"):
        if not hub_answers():
            raise errors.OfflineModeIsEnabled("no network")
        api = HfApi(token=token)
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=directory,
            revision=revision,
            commit_message=commit_message or "Upload soft prompt",
            allow_patterns=names,
            delete_patterns=names,
        )
    return str(commit)


def require_repository(name: str) -> None:
    """Raises `PromptError` for what cannot name a repository."""
    if not is_hub_name(name) or "@" in name:
        raise PromptError(f"a repository named {name!r}", "user/name", "Correct it")


@contextmanager
def _told(lead: str, refusal: str, expected: str) -> Iterator[None]:
    """Tells in one line what goes wrong with the hub.

    Args:
        lead: How the line begins.
        refusal: What the hub does where it does not allow something.
        expected: What was expected.
    """
    try:
        yield
    except PTuningError:
        raise
    except errors.RevisionNotFoundError as error:
        raise PromptError(f"{lead} the hub has no such revision", "a branch, tag or commit", "Correct it") from error
    except errors.GatedRepoError as error:
        raise PromptError(f"{lead} it is gated", expected, "Ask for access on its page, and log in") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        received = f"{lead} {refusal} (HTTP status {status})"
        remedy = _LOG_IN if status in (401, 403, 404) else "Try again later"
        raise PromptError(received, expected, remedy) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        is_forbidden = constants.HF_HUB_OFFLINE
        why = "HF_HUB_OFFLINE forbids asking the hub" if is_forbidden else "the hub does not answer"
        remedy = "Unset HF_HUB_OFFLINE" if is_forbidden else "Check the network"
        raise PromptError(f"{lead} {why}", expected, f"{remedy}, or the path") from error
    except Exception as error:  # the library under the hub's raises errors of its own
        raise PromptError(f"{lead} the hub fails ({error})", expected, "Try again later") from error
