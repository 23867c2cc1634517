"""Models of the Hugging Face Hub, or of folders that look the same: model.safetensors and its card, README.md."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from capscore.disk import make_folder, write_atomically
from capscore.errors import BackendError, ModelFileError
from capscore.modelfile import Model
from capscore.zoo import chosen, list_models
from capscore.zoo.cards import card_of

MODEL, CARD = "model.safetensors", "README.md"
HEAD = "---\nlibrary_name: capscore\n{}tags:\n- capsule-network\n---\n\n"


def from_pretrained(where: str | os.PathLike[str], backend: str | None = None, revision: str | None = None) -> Any:
    """Return the network of a folder or file, or of a repository "owner/name" on the Hub.

    `revision` is the repository's commit or tag. Raises ModelFileError if there is none, or the Hub does not give it.
    """
    found = Path(where)
    if not found.exists():
        if str(where) in list_models(pretrained=True):
            raise ModelFileError(f'{where} ships with capscore: capscore.create("{where}", pretrained=True)')
        found = _fetched(str(where), revision)
    return chosen(backend).CapsNet.load(found / MODEL if found.is_dir() else found)


def save_pretrained(net: Any, folder: str | os.PathLike[str], card: str = "") -> Path:
    """Write a network and its card into a folder, which `from_pretrained` reads; return the folder.

    Without `card`, that of a network of the zoo is its own; that of another tells its spec.
    """
    folder = make_folder(folder)
    net.save(folder / MODEL)
    published = {"published", "measured", "seeds"} <= net.provenance.keys()
    if not card and published:
        model = Model(net.spec, {}, net.classes, net.provenance)
        card = card_of(net.provenance["published"]["name"], model)
    licence = "license: apache-2.0\n" if published else ""
    text = card or f"A capsule network.\n\n```json\n{net.spec.to_json()}\n```\n"
    write_atomically(folder / CARD, (HEAD.format(licence) + text).encode())
    return folder


def push_to_hub(net: Any, repository: str, card: str = "", private: bool = False) -> str:
    """Send a network and its card to a repository "owner/name" of the Hub, made if it is not there; return its URL.

    You must be logged in: `hf auth login`. Raises ModelFileError if the Hub refuses, or cannot be reached.
    """
    hub = _hub()
    with tempfile.TemporaryDirectory() as made:
        folder = save_pretrained(net, made, card)
        try:
            url = hub.create_repo(repository, private=private, exist_ok=True)
            hub.upload_folder(repo_id=repository, folder_path=folder)
        except Exception as error:  # the Hub's own, and those of whatever carries its words
            raise ModelFileError(f"the Hub does not take {repository}: {error}") from None
    return str(url)


def _fetched(repository: str, revision: str | None) -> Path:
    hub = _hub()
    try:
        return Path(hub.hf_hub_download(repository, MODEL, revision=revision))
    except Exception as error:  # the Hub's own, and those of whatever carries its words
        raise ModelFileError(
            f"{repository} is no file or folder here, and the Hub does not give its {MODEL}: {error}"
        ) from None


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise BackendError("the Hugging Face Hub needs a package: pip install 'capscore[hub]'") from None
    return huggingface_hub
