"""Artefacts on the Hugging Face Hub: one repository each, with a card."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

CARD = "README.md"


def push(
    write: Callable[[str], Any],
    card: str,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    **upload: Any,
) -> str:
    """Upload what ``write(folder)`` writes, with ``card`` as the README; see
    `SteeringVectors.push_to_hub`.

    Raises:
        ValueError: a repository that cannot be made or written.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not upload.get("create_pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            write(folder)
            Path(folder, CARD).write_text(card, "utf-8")
            done = api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, **upload
            )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(
            f"repo_id {repo_id!r} could not be written: {error}; check the name, the network, and "
            "that you are logged in with the right to write there (`hf auth login`)"
        ) from error
    return str(done)


def download(
    argument: str, repo_id: str, revision: str | None, told: str = "", **patterns: list[str]
) -> Path:
    """The folder of a downloaded repository.

    Args:
        argument: what the error calls ``repo_id``; told: what it says behind "repository".
        patterns: ``allow_patterns`` or ``ignore_patterns`` of the files.

    Raises:
        ValueError: no such repository or revision, or no way to reach it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, revision=revision, **patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{argument} {repo_id!r} is neither a folder here nor a Hub repository{told} that "
            f"could be downloaded: {error}"
        ) from error
