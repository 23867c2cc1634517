"""Models of the Hugging Face Hub, or of folders that look the same: model.safetensors and its card, README.md."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from capscore.disk import write_atomically
from capscore.errors import BackendError, ModelFileError
from capscore.zoo import chosen

MODEL, CARD = "model.safetensors", "README.md"
HEAD = "---\nlibrary_name: capscore\ntags:\n- capsule-network\n---\n\n"


def from_pretrained(where: str | os.PathLike[str], backend: str | None = None, revision: str | None = None) -> Any:
    """Return the network in a folder, or of a repository "owner/name" on the Hub, `revision` being its commit or tag.

    Raises ModelFileError if there is none, or the Hub does not give it.
    """
    folder = Path(where)
    return chosen(backend).CapsNet.load(folder / MODEL if folder.is_dir() else _fetched(str(where), revision))


def save_pretrained(net: Any, folder: str | os.PathLike[str], card: str = "") -> Path:
    """Write a network and its card into a folder, which `from_pretrained` reads; return the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    net.save(folder / MODEL)
    text = HEAD + (card or f"A capsule network.\n\n```json\n{net.spec.to_json()}\n```\n")
    write_atomically(folder / CARD, text.encode())
    return folder


def push_to_hub(net: Any, repository: str, card: str = "", private: bool = False) -> str:
    """Send a network and its card to a repository "owner/name" of the Hub, made if it is not there; return its URL.

    You must be logged in: `hf auth login`. Raises ModelFileError if the Hub refuses.
    """
    hub = _hub()
    with tempfile.TemporaryDirectory() as made:
        folder = save_pretrained(net, made, card)
        try:
            url = hub.create_repo(repository, private=private, exist_ok=True)
            hub.upload_folder(repo_id=repository, folder_path=folder)
        except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError, OSError) as error:
            raise ModelFileError(f"the Hub does not take {repository}: {error}") from None
    return str(url)


def _fetched(repository: str, revision: str | None) -> Path:
    hub = _hub()
    try:
        return Path(hub.hf_hub_download(repository, MODEL, revision=revision))
    except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError, hub.errors.LocalEntryNotFoundError, OSError) as e:
        raise ModelFileError(f"{repository} is no folder, and the Hub does not give its {MODEL}: {e}") from None


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise BackendError("the Hugging Face Hub needs a package: pip install 'capscore[hub]'") from None
    return huggingface_hub
