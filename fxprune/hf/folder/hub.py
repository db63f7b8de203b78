"""Folders of pruned models on their way to the hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from fxprune.errors import CheckpointError


def check_push(name: str) -> None:
    """Refuse what could not be uploaded, before any work is done.

    Args:
        name: ``user/name``.

    Raises:
        CheckpointError: that is no name, there is no token, or the hub does not take it.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise CheckpointError(f"--push-to-hub {name}: {error}") from error
    if name.count("/") != 1:
        raise CheckpointError(f"--push-to-hub {name}: give USER/NAME")
    if get_token() is None:
        raise CheckpointError(
            f"--push-to-hub {name} needs a token: hf auth login, or set HF_TOKEN (one that may "
            "write)"
        )
    with _reaching(name):
        HfApi().whoami()


def push(folder: Path, name: str) -> str:
    """Upload a folder as a model; the repository is made if there is none.

    Args:
        folder: all files of which go.
        name: ``user/name``.

    Returns:
        Where it is.

    Raises:
        CheckpointError: the hub does not take it, or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _reaching(name):
        url = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Pruned by fxprune")
    return str(url)


@contextlib.contextmanager
def _reaching(name: str) -> Iterator[None]:
    """Say in one line what the hub did not like."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise CheckpointError(
            f"{name} cannot go to the hub: HF_HUB_OFFLINE is set; unset it"
        ) from error
    except HfHubHTTPError as error:
        said = error.server_message or str(error).splitlines()[0]
        raise CheckpointError(f"the hub does not take {name}: {said}") from error
    except OSError as error:
        raise CheckpointError(f"{name}: the hub cannot be reached ({error})") from error
