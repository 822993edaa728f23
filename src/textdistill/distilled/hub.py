"""Dataset repositories on the Hugging Face hub, which sets are read from and pushed to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, constants, get_token, snapshot_download

# HTTPError is the base class of all network errors: httpx's in huggingface_hub 1, httpx2's in version 2.
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]


def download(repo: str, revision: str | None, names: Sequence[str]) -> Path:
    """Downloads files of a dataset repository to the hub's cache.

    Returns:
        The folder of the downloaded commit, which is named after the commit.

    Raises:
        FileNotFoundError: there is no such repository or revision, or the hub cannot be reached.

    """
    try:
        return Path(snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=list(names)))
    except (OSError, ValueError, HTTPError) as error:
        raise FileNotFoundError(
            f"{repo!r} is neither a folder here nor, at revision {revision!r}, a dataset repository that can "
            f"be fetched from the hub; check path, repository and connection ({str(error).strip()})"
        ) from error


def create(repo: str, private: bool | None, token: str | None) -> str:
    """Creates a dataset repository unless it exists.

    Args:
        repo: ``owner/name``, or ``name`` for a repository of the token's owner.
        private: whether a new repository is private; None leaves it to the owner's settings.
        token: None for the token that the machine is logged in with.

    Returns:
        ``owner/name``.

    Raises:
        ValueError: there is no token, the name breaks the hub's rules, or ``private`` is True and the repository
            exists and is public.
        OSError: the hub refuses, or cannot be reached.

    """
    api = _api(token)
    with _pushing(repo):
        repo_id: str = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True).repo_id
        # The hub ignores ``private`` if the repository exists.
        if private and not api.dataset_info(repo_id).private:
            raise ValueError(
                f"{repo_id!r} must be private, but it exists and is public; make it private in its settings on the hub,"
                " or push to another name"
            )
    return repo_id


def commit(folder: Path, repo: str, revision: str | None, message: str, token: str | None) -> CommitInfo:
    """Commits the files of a folder to a dataset repository, all in one commit or none.

    ``HfApi.upload_folder`` could not promise that, because it may make several commits.

    Args:
        folder: holds files only.
        repo: ``owner/name``.
        revision: a branch, created if need be; None means the main branch.
        message: message of the commit.
        token: as in ``create``.

    Raises:
        ValueError: there is no token, or the hub rejects the header of the README.
        OSError: the hub refuses, or cannot be reached.

    """
    api = _api(token)
    files = [CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path) for path in sorted(folder.iterdir())]
    with _pushing(repo):
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo, repo_type="dataset", branch=revision, exist_ok=True)
        return api.create_commit(repo, files, commit_message=message, repo_type="dataset", revision=revision)


def _api(token: str | None) -> HfApi:
    token = token or get_token()
    if token is None:
        raise ValueError(
            "pushing needs a token of the hub that may write, and none was found; run hf auth login, or set HF_TOKEN"
        )
    return HfApi(token=token, library_name="textdistill")


@contextmanager
def _pushing(repo: str) -> Iterator[None]:
    """Turns errors of the hub and the network into an OSError of one sentence with a remedy."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = error.server_message or str(error).strip().partition("\n")[0]
        remedy = "push again when that is fixed"
        if status in (401, 403, 404):
            remedy = "check the name, and that the token may write there (hf auth whoami)"
        raise OSError(f"pushing to {repo!r} failed: the hub answered {status} ({reason}); {remedy}") from error
    except (HTTPError, ConnectionError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) else error  # raised by the upload of a large file
        reason = str(cause or error).strip().partition("\n")[0]
        raise OSError(
            f"pushing to {repo!r} failed ({reason}); check the connection to {constants.ENDPOINT} and push again"
        ) from error
