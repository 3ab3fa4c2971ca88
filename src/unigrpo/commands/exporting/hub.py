"""Put a finished export on the Hugging Face hub; what can be refused is refused before anything is exported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from unigrpo.ranges import ConfigError, lacking

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/name


def ready(name: str, *, public: bool) -> Any:
    """The hub's client, logged in and allowed to use ``name`` (owner/name); ConfigError says what is missing.

    The token is the hub's own affair: the environment's HF_TOKEN, or that of `hf auth login`. A repository that is
    there and public is only written to with ``public``, so that nothing is published by mistake.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"--push-to-hub {name}: give owner/name, for example me/my-bagel")
    try:
        import huggingface_hub
    except ImportError as error:
        raise lacking("--push-to-hub", "huggingface_hub", "bagel") from error
    client = huggingface_hub.HfApi()
    try:
        client.whoami()
        seen = client.repo_exists(name) and not client.repo_info(name).private
    except Exception as error:  # the hub's client has its own kinds of faults, over those of its network library
        raise ConfigError(
            f"--push-to-hub {name}: the hub said: {_first_line(error)}; set HF_TOKEN or run `hf auth login`, or export "
            "without it"
        ) from error
    if seen and not public:
        raise ConfigError(f"--push-to-hub {name}: that repository is public; add --public, or name another one")
    return client


def push(client: Any, folder: Path, name: str, *, public: bool) -> str:
    """Upload a whole folder as one commit, into a new repository (private unless ``public``) or one that is there.

    ConfigError says what the hub said; the folder stays, and can be uploaded later.
    """
    try:
        client.create_repo(name, private=not public, exist_ok=True)
        client.upload_folder(repo_id=name, folder_path=str(folder), commit_message="Export by unigrpo")
    except Exception as error:  # as above
        raise ConfigError(
            f"{folder} is written, but not uploaded to {name}: the hub said: {_first_line(error)}; to try again: "
            f"hf upload {name} {folder}"
        ) from error
    return f"uploaded to https://huggingface.co/{name} ({'public' if public else 'private: only you see it'})"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
