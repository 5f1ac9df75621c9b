"""An export onto the Hugging Face Hub, through huggingface_hub.

`check` runs before anything is computed, `push` after the gate has passed. A repository gets
exactly the folder: one that holds other files is refused, and so is a public one without
`--public`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nas_jax.utils.errors import ConfigError, DataError

OURS = "text_tokenizer.json"  # every export has it
MESSAGE = "Export of nas_jax"
_BY_HUB = {".gitattributes"}  # the hub makes it
_ANOTHER = "name another repository with --push, or delete them there"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `check` and `push`."""
    parser.add_argument(
        "--push",
        default="",
        metavar="OWNER/NAME",
        help="repository on the hub that the folder goes to when it has passed the gate; private",
    )
    parser.add_argument("--public", action="store_true", help="with --push: a public one")


def check(repo: str, public: bool) -> None:
    """Raises ConfigError where a push could not work: no huggingface_hub, no token, another form
    of name, or a repository with other contents; DataError where the hub refuses or is not there.
    """
    if not repo:
        if public:
            raise ConfigError("--public without --push", "both", "name a repository with --push")
        return
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(
            "--push without huggingface_hub", "the package", "pip install huggingface_hub"
        ) from error
    try:
        huggingface_hub.utils.validate_repo_id(repo)
    except ValueError as error:
        expected = "OWNER/NAME as the hub allows it"
        raise ConfigError(f"--push {repo}", expected, "name a repository so") from error
    if "/" not in repo:
        raise ConfigError(f"--push {repo}", "OWNER/NAME", f"--push your-name/{repo}")
    if not huggingface_hub.get_token():
        raise ConfigError(
            "--push without a token of the hub",
            "one that may write",
            "hf auth login, or set HF_TOKEN",
        )
    api = huggingface_hub.HfApi()
    with _reaching("nothing was exported: check token and network, and start again"):
        files = _files(api, repo)
        private = None if files is None else bool(api.repo_info(repo).private)
    if private is False and not public:
        remedy = "pass --public, or make it private on the hub"
        raise ConfigError(f"--push {repo}, which is public", "a private repository", remedy)
    others = sorted((files or set()) - _BY_HUB)
    if others and OURS not in others:
        got = f"--push {repo}, which holds {others[0]} and is no export"
        raise ConfigError(got, "a new or empty repository, or an export", _ANOTHER)


def push(folder: Path, repo: str, public: bool, say: Callable[[str], None]) -> None:
    """Uploads the folder, making the repository where there is none.

    Raises ConfigError where it holds files that the folder does not, DataError where the hub
    refuses; the folder is whole then.
    """
    from huggingface_hub import HfApi

    api, ours = HfApi(), {path.relative_to(folder).as_posix() for path in _walk(folder)}
    again = f"{folder} is whole: hf upload {'' if public else '--private '}{repo} {folder} ."
    with _reaching(again):
        files = _files(api, repo)
        others = sorted((files or set()) - _BY_HUB - ours)
        if not others:
            if files is None:
                api.create_repo(repo, private=not public)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message=MESSAGE)
    if others:
        raise ConfigError(
            f"{repo} with {others[0]}, which the export has not",
            "a repository that will hold the export alone",
            f"delete it on the hub; {again}",
        )
    say(f"pushed: {api.endpoint}/{repo}, {len(ours)} files")


def _walk(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _files(api: Any, repo: str) -> set[str] | None:
    """The names of all files of a repository; None where there is none (for this token)."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return set(api.list_repo_files(repo))
    except RepositoryNotFoundError:
        return None


@contextmanager
def _reaching(remedy: str) -> Iterator[None]:
    """In here a failure of the hub, or on the way to it, is one line."""
    from huggingface_hub.errors import HfHubHTTPError

    # its base classes: those of the HTTP client that its version has
    kinds = tuple(kind for kind in HfHubHTTPError.__bases__ if issubclass(kind, Exception))
    try:
        yield
    except kinds + (OSError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        got = f"the hub: {' '.join(lines)[:300] or repr(error)}"
        raise DataError(got, "a repository that this token may write", remedy) from error
