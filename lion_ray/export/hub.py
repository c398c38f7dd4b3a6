"""Pushing an export to the Hugging Face hub.

Invariants:
- The token is HF_TOKEN only, never a stored login. It appears in no message.
- New repositories are private by default. An already public one is uploaded to only with `--public`, so that results
  are not published by mistake.
- Uploaded files match their checksums from the export.

huggingface_hub implements the protocol; HF_ENDPOINT selects another hub.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from lion_ray.core.errors import ConfigError, EndpointError, InfrastructureError, one_line
from lion_ray.export.folder import PARTS, Exported

TOKEN = "HF_TOKEN"


def check_target(repo: str) -> str:
    """Validate the repository's name and return the token.

    Raises:
        ConfigError: the name is not valid, or HF_TOKEN is not set.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--push {repo}: {one_line(error)}") from None
    if repo.count("/") != 1:
        raise ConfigError(f"--push {repo}: expected OWNER/NAME")
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise ConfigError(f"--push {repo}: set the environment variable {TOKEN} to a token with write access")
    return token


def push(exported: Exported, repo: str, *, public: bool = False, say: Callable[[str], None] = print) -> list[str]:
    """Push every part: the data set and the model to `repo`, adapters to `repo`-adapter. Returns their addresses.

    Raises:
        ConfigError: as `check_target`; or a repository is public, without `public`.
        EndpointError: the hub refused the token or the request.
        InfrastructureError: the hub is unreachable or failed.
    """
    token = check_target(repo)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token)
    addresses = []
    try:
        for part in exported.parts:
            kind = "dataset" if part == "data" else "model"
            target = f"{repo}-adapter" if part == "adapters" else repo
            addresses.append(_push_part(api, exported, part, kind, target, public))
            say(f"pushed {part}: {addresses[-1]}")
    except HfHubHTTPError as error:
        status = error.response.status_code
        message = f"{api.endpoint}: {_redacted(error.server_message or error, token)}"
        if status in (401, 403):
            raise EndpointError(f"{message}; does the token in {TOKEN} have write access to {repo}?") from None
        raise InfrastructureError(f"{message}; the export is kept: repeat the command to push it again") from None
    except Exception as error:
        # huggingface_hub's transports (httpx, hf_xet) raise exceptions of many types. Nothing is lost: the export is
        # complete on disk.
        if isinstance(error, ConfigError):
            raise
        cause = error.__cause__ or error
        message = f"{api.endpoint}: the push failed: {_redacted(cause, token)}"
        raise InfrastructureError(f"{message}; the export is kept: repeat the command to push it again") from None
    return addresses


def _push_part(api: Any, exported: Exported, part: str, kind: str, target: str, public: bool) -> str:
    address = api.create_repo(target, repo_type=kind, private=not public, exist_ok=True)
    if not public and not api.repo_info(target, repo_type=kind).private:
        raise ConfigError(f"--push {target}: the {kind} repository is public; add --public, or choose another name")
    api.upload_folder(
        repo_id=target,
        repo_type=kind,
        folder_path=exported.folder / PARTS[part],
        commit_message=f"Export of a lion-ray run: {part}",
    )
    return str(address)


def _redacted(text: object, token: str) -> str:
    return one_line(str(text).replace(token, "…"))
