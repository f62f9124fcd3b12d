"""What a hub's library raises, as one sentence."""

from __future__ import annotations

from mapmerge_core.errors import CheckpointError, reason_of


def is_unreachable(error: Exception) -> bool:
    """Return whether an error is the network's (or a hub's that is down), not an answer of the hub."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", None)
        return status is None or status >= 500
    if isinstance(error, LocalEntryNotFoundError):
        return True
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"ConnectionError", "TransportError", "TimeoutError", "Timeout", "URLError"})


def explain(url: str, parts: tuple[str, str | None, str], error: Exception) -> CheckpointError:
    """Return the error to raise for one of huggingface_hub's.

    Args:
        url: The reference as text.
        parts: Its repository, revision and path.
        error: What was raised.
    """
    from huggingface_hub import errors

    repository, revision, path = parts
    if isinstance(error, errors.GatedRepoError):
        text = f"{url} is gated: ask for access on the model's page, then log in with 'hf auth login'."
    elif isinstance(error, errors.RevisionNotFoundError):
        text = f"{url} was not found: the model {repository} has no revision '{revision or 'main'}'."
    elif isinstance(error, errors.RepositoryNotFoundError):
        text = f"{url} was not found: the hub has no model '{repository}', or it is private and needs 'hf auth login'."
    elif is_unreachable(error):
        text = f"{url} can't be downloaded, for the hub can't be reached: check the network, or choose a local folder."
    elif isinstance(error, errors.EntryNotFoundError):
        text = f"{url} was not found: the model has no file or folder '{path}'."
    elif isinstance(error, errors.HFValidationError):
        text = not_a_model(url)
    else:
        text = f"{url} can't be downloaded: {reason_of(error)}."
    return CheckpointError(text)


def not_a_model(url: str) -> str:
    """Return the sentence about a text that is no reference to a model."""
    return (
        f"'{url}' is not a model on the hub: write hf://organisation/name, with @revision and /file after it if needed."
    )
