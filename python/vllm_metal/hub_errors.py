# SPDX-License-Identifier: Apache-2.0
"""What goes wrong with the Hugging Face Hub and with ModelScope, in one message each.

Their clients, and vLLM's and transformers' code around them, raise dozens of types, one from
another; the cause is looked for along that chain.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from vllm_metal import envs
from vllm_metal.model_directory import is_file_name

_Error = TypeVar("_Error", bound=BaseException)


@contextlib.contextmanager
def readable_errors(model: str, revision: str | None) -> Iterator[None]:
    """Turn errors of the hub in the block into RuntimeError with one message, without the chain.

    Others pass as they are.
    """
    try:
        yield
    except Exception as error:  # whatever the hub's client and its transport raise
        explain = _explain_modelscope if envs.uses_modelscope() else _explain_hugging_face
        message = None if isinstance(error, HubError) else explain(error, model, revision)
        if message is None:
            raise
        raise HubError(message) from None


class HubError(RuntimeError):
    """An error that was explained already."""


def _explain_hugging_face(error: Exception, model: str, revision: str | None) -> str | None:
    from huggingface_hub import constants, errors

    transport_error = errors.HfHubHTTPError.__bases__[0]  # of the HTTP library that it uses
    site = f"the Hugging Face Hub ({constants.ENDPOINT})"
    if _find(error, errors.HFValidationError):
        return _bad_name(model)
    if _find(error, errors.GatedRepoError):
        return (
            f"Access to {model!r} is restricted: accept its terms at {constants.ENDPOINT}/{model}, "
            "then give a token of the account that did (HF_TOKEN, --hf-token or `hf auth login`)."
        )
    if _find(error, errors.RevisionNotFoundError):
        return _no_revision(site, model, revision, _hugging_face_revisions)
    if _find(error, errors.RepositoryNotFoundError):
        token = "HF_TOKEN, --hf-token or `hf auth login`"
        return _no_model(site, model, token)
    if _find(error, errors.DisabledRepoError):
        return f"{model!r} was disabled on {site}. Serve another model."
    if constants.HF_HUB_OFFLINE and _find(
        error, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError
    ):
        return _offline(model, revision)
    if _find(error, errors.RemoteEntryNotFoundError):
        return None  # an optional file, or vLLM says which one is missing
    for kind in (errors.HfHubHTTPError, transport_error, errors.LocalEntryNotFoundError):
        if found := _find(error, kind):
            return _no_answer(site, model, revision, _first_line(found))
    return None


def _explain_modelscope(error: Exception, model: str, revision: str | None) -> str | None:
    import requests
    from modelscope_hub import errors
    from modelscope_hub.config import HubConfig

    site = f"ModelScope ({HubConfig().endpoint})"
    token = "MODELSCOPE_API_TOKEN or `modelscope login`"
    if _find(error, errors.CacheNotFound):
        return _offline(model, revision)
    if _find(error, errors.AuthenticationError, errors.PermissionDeniedError):
        return (
            f"Access to {model!r} on {site} is restricted: give a token of an account that has it "
            f"({token})."
        )
    if _find(error, errors.NotExistError):
        if revision is None or not _modelscope_revisions(model):
            return _no_model(site, model, token)
        return _no_revision(site, model, revision, _modelscope_revisions)
    if found := _find(error, errors.FileDownloadError):
        name, reason = next(iter(found.failed_files.items()))
        return _no_answer(site, model, revision, f"{name}: {_first_line(reason)}")
    if _find(error, errors.InvalidParameter):
        return _bad_name(model)
    if found := _find(error, errors.HubError, requests.RequestException):
        return _no_answer(site, model, revision, _first_line(found))
    return None


def check_name(model: str) -> None:
    """Raise HubError for a name that would have ModelScope's client leave its cache.

    The Hugging Face Hub's client checks names by itself.
    """
    if not all(map(is_file_name, model.split("/"))):
        raise HubError(_bad_name(model)) from None


def _bad_name(model: str) -> str:
    return (
        f"{model!r} is neither a folder on this machine nor the name of a model on a hub, which "
        "looks like 'owner/name'."
    )


def _no_model(site: str, model: str, token: str) -> str:
    return (
        f"{model!r} is neither a folder on this machine nor a model that one may see on {site}. "
        f"Check the spelling; for a private model give a token ({token})."
    )


def _no_revision(
    site: str, model: str, revision: str | None, revisions: Callable[[str], list[str]]
) -> str:
    known = revisions(model)
    there_are = f" There are: {', '.join(known[:20])}." if known else ""
    return (
        f"{model!r} on {site} has no revision {str(revision)!r}. --revision takes a branch, a tag "
        f"or a commit.{there_are}"
    )


def _offline(model: str, revision: str | None) -> str:
    return (
        f"{_named(model, revision)} is not complete in the cache, and HF_HUB_OFFLINE=1 forbids to "
        "download it. Start once without HF_HUB_OFFLINE, with the same --download-dir, or name a "
        "folder on this machine."
    )


def _no_answer(site: str, model: str, revision: str | None, reason: str) -> str:
    return (
        f"{_named(model, revision)} could not be fetched from {site}: {reason.rstrip('.')}. Check "
        "the network and start again (what was fetched is kept), or name a folder on this machine."
    )


def _named(model: str, revision: str | None) -> str:
    return repr(model) if revision is None else f"Revision {str(revision)!r} of {model!r}"


def _hugging_face_revisions(model: str) -> list[str]:
    from huggingface_hub import HfApi

    with contextlib.suppress(Exception):  # it only adds to a message
        refs = HfApi().list_repo_refs(model)
        return [ref.name for ref in [*refs.branches, *refs.tags]]
    return []


def _modelscope_revisions(model: str) -> list[str]:
    from modelscope.hub.api import HubApi

    with contextlib.suppress(Exception):  # it only adds to a message
        branches, tags = HubApi().get_model_branches_and_tags(model)
        return [*branches, *tags]
    return []


def _find(error: BaseException, *types: type[_Error]) -> _Error | None:
    """Return the first error of one of `types` among `error` and those it was raised from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        if isinstance(current, types):
            return current
        seen.add(id(current))
        current = current.__cause__ or current.__context__
    return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
