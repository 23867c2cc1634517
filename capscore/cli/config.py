"""The settings of a training as a file: every option of `train` by its name, and the network itself."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Collection
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from capscore import CapsNetSpec, disk
from capscore.cli.options import TrainOptions
from capscore.cli.shared import NETWORK, quoted, read_object
from capscore.errors import CapscoreError, short

CONFIG = "config.json"  # beside the model
NOT_KEPT = ("config", "out", "resume", "preset", "spec", "imports", "find_rate", "report")  # they say where, not how

KINDS = {
    field: get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for field, hint in get_type_hints(TrainOptions).items()
}


class Config:
    """Writes the settings beside the model and tells of them, once the folder is found fit for it: a reporter."""

    def __init__(self, folder: Path, options: TrainOptions, spec: CapsNetSpec, tell: Callable[[str], object]) -> None:
        self.path, self.text = folder / CONFIG, written(options, spec)
        self.tell, self.command = tell, command(options, self.path)

    def begin(self, epoch: int, epochs: int, steps: int, step: int) -> None:
        """Write the file."""
        if epoch == 1 and step == 0:
            disk.write_atomically(self.path, self.text.encode())
            self.tell(f"settings: {self.command}")
            where = quoted(str(self.path))
            self.tell(f"all of them are in {where}: edit it, and capscore train --config {where} --out …")

    def step(self, images: int, loss: float, accuracy: float) -> None:
        """Nothing is written within an epoch."""

    def end(self, row: dict[str, Any]) -> None:
        """Nothing is written after it."""


def command(options: TrainOptions, config: Path) -> str:
    """Return the command that sets a training so, its network from the file of its settings."""
    flags = [] if options.finetune else ["--spec", quoted(str(config))]
    for field in fields(options):
        value, flag = getattr(options, field.name), "--" + field.name.removesuffix("_name").replace("_", "-")
        if field.name == "imports":
            flags += [part for file in value or () for part in ("--import", quoted(str(file)))]
        elif value is True and field.name not in NOT_KEPT:
            flags.append(flag)
        elif field.name == "data" or (field.name not in NOT_KEPT and value != field.default):
            flags += [flag, quoted(str(value))]
    return f"capscore train {' '.join(flags)}"


def written(options: TrainOptions, spec: CapsNetSpec) -> str:
    """Return the JSON of settled options and of the network."""
    told = {
        field.name: str(value) if isinstance(value, Path) else value
        for field in fields(options)
        if field.name not in NOT_KEPT and (value := getattr(options, field.name)) is not None
    }
    if (augment := told.get("augment", "")).startswith("["):
        told["augment"] = json.loads(augment)
    return json.dumps(told | {NETWORK: json.loads(spec.to_json())}, indent=2) + "\n"


def read_config(path: Path, options: TrainOptions, given: Collection[str]) -> TrainOptions:
    """Return the options with a file's settings in the place of those that the command line did not give."""
    told = read_object(path)
    if NETWORK in told and "finetune" not in told and not {"preset", "spec", "finetune"} & {*given}:
        options = replace(options, spec=path, preset=None)
    settings = {name: value for name, value in told.items() if name != NETWORK}
    if isinstance(augment := settings.get("augment"), list):
        settings["augment"] = json.dumps(augment)
    for name, value in settings.items():
        if name not in KINDS or name in NOT_KEPT:
            known = ", ".join(name for name in KINDS if name not in NOT_KEPT)
            raise CapscoreError(f"{path}: there is no setting {short(name)}; there are {known} and {NETWORK}")
        settings[name] = _of_kind(value, KINDS[name], f"{path}: {name}")
    return replace(options, **{name: value for name, value in settings.items() if name not in given})


def _of_kind(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    if type(value) is int and int not in kinds and float in kinds:
        return float(value)
    if isinstance(value, str) and Path in kinds:
        return Path(value)
    if type(value) not in kinds:
        wanted = " or ".join(kind.__name__ for kind in kinds if kind is not types.NoneType)
        raise CapscoreError(f"{where} is {short(value)}: give a {wanted}, or leave it out")
    return value
