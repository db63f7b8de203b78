"""Model folders from the hub, through huggingface_hub's own cache."""

from __future__ import annotations

from pathlib import Path

from fxprune.errors import ModelError

_CONFIG = ["config.json"]
# Never *.bin: those are pickles. Folders inside a repository hold the same in other formats.
_MODEL = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]
_OTHER_FORMATS = ["*/*", "consolidated*"]


def fetch(name: str, *, weights: bool) -> Path:
    """The local snapshot of a hub repository, downloaded where it is not in the cache yet.

    Args:
        name: ``org/name``.
        weights: fetch weights and tokenizer too, not only ``config.json``.

    Raises:
        ModelError: no such repository, no access to it, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    patterns = _MODEL if weights else _CONFIG
    try:
        folder = snapshot_download(name, allow_patterns=patterns, ignore_patterns=_OTHER_FORMATS)
    except GatedRepoError as error:
        raise ModelError(
            f"{name} asks for access on the hub: get it, then hf auth login"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"{name!r} is neither a file or folder here nor a model on the hub: check the spelling "
            "(a private one needs hf auth login)"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"{name!r} is not a file or folder here, and the hub cannot be reached to look there: "
            "check the path, or the network, or give a local folder or smollm2"
        ) from error
    return Path(folder)
