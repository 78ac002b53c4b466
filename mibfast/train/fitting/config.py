"""The settings of a run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mibfast.data.multimodal import FRACTIONS, nearest
from mibfast.train import checks
from mibfast.train.errors import RunError
from mibfast.train.json_files import read_json

_MOST_FEATURES, _MOST_LAYERS, _LARGEST_SEED = 2**20, 1000, 2**32 - 1


@dataclass(frozen=True)
class RunConfig:
    """The settings of a run: with the data, all that is needed to repeat it.

    Attributes
    ----------
    method : str
        One of :data:`mibfast.train.methods.METHODS`.
    data : str
        As :func:`mibfast.data.load` takes it, paths absolute.
    modalities : tuple of str, optional
        Those to align, in this order; all without.
    split : three floats
        Fractions of training, validation and test.
    seed : int
        Of the split, the initial weights, the order of samples, and whatever encoders draw.
    epochs, batch_size : int
        A last batch that is smaller is left out: the losses depend on the number of negatives.
    learning_rate, weight_decay : float
        Of AdamW; without weight decay it is Adam.
    patience : int
        Epochs without a lower validation loss, of a fusion's predictions alone, after which training stops. The weights
        of the best epoch are kept.
    features : int
        Length of representations and of embeddings; 2**20 at most.
    depth : int
        Number of linear layers of MLP encoders, and of convolutions; 1000 at most.
    dropout : float
        The share of MLP encoders' hidden units that training leaves out, in [0, 1). Other encoders have none.
    encoders : mapping from a modality's name to an encoder's name or "module:callable"
        Where it is not to be chosen by the array's shape; see :func:`mibfast.train.fitting.encoders.build_encoder`.
    loss : mapping
        Arguments of the method's loss, or of the fusion.
    task : {"auto", "classification", "regression", "anomaly-detection"}
        Of a fusion; by itself classification, or regression where labels are floats.
    normal_class : int or str, optional
        The label of what is normal, of anomaly detection: a fusion is trained on it alone.
    warm_up_epochs : int, optional
        Before `epochs`, of a fusion that has a warm-up; 1 without.
    beta_estimator : str
        By which OMIB's beta is estimated where `loss` does not give one; see :func:`mibfast.omib.estimate_beta`.
    checkpoint_minutes : float
        A state to resume from is written after every epoch, and this often within one.

    Raises
    ------
    RunError
        For settings of a wrong type or out of range.
    """

    method: str
    data: str
    modalities: tuple[str, ...] | None = None
    split: tuple[float, ...] = FRACTIONS
    seed: int = 0
    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    patience: int = 20
    features: int = 256
    depth: int = 3
    dropout: float = 0.0
    encoders: Mapping[str, str] = field(default_factory=dict)
    loss: Mapping[str, Any] = field(default_factory=dict)
    task: str = "auto"
    normal_class: int | str | None = None
    warm_up_epochs: int | None = None
    beta_estimator: str = "smile"
    checkpoint_minutes: float = 10.0

    def __post_init__(self) -> None:
        """Check types and ranges."""
        for name, least in (
            ("epochs", 1),
            ("batch_size", 2),
            ("patience", 1),
            ("features", 1),
            ("depth", 1),
            ("seed", 0),
        ):
            checks.integer(name, getattr(self, name), least)
        for name, most in (("features", _MOST_FEATURES), ("depth", _MOST_LAYERS), ("seed", _LARGEST_SEED)):
            if getattr(self, name) > most:
                raise RunError(f"{name} must be at most {most}, got {getattr(self, name)}")
        for name in ("learning_rate", "checkpoint_minutes"):
            checks.number(name, getattr(self, name), positive=True)
        checks.number("weight_decay", self.weight_decay)
        checks.fraction("dropout", self.dropout)
        if self.warm_up_epochs is not None:
            checks.integer("warm_up_epochs", self.warm_up_epochs, 0)
        if not isinstance(self.normal_class, (int, str, type(None))):
            raise RunError(f"normal_class must be an integer or a string, got {self.normal_class!r}")
        for name in ("method", "data", "task", "beta_estimator"):
            if not isinstance(getattr(self, name), str):
                raise RunError(f"{name} must be a string, got {getattr(self, name)!r}")
        for name in ("encoders", "loss"):
            if not isinstance(getattr(self, name), Mapping):
                raise RunError(f"{name} must be a mapping, got {getattr(self, name)!r}")
        for name, encoder in self.encoders.items():
            if not isinstance(name, str) or not isinstance(encoder, str):
                raise RunError(f"encoders must map names to names, got {name!r}: {encoder!r}")
        if "backend" in self.loss:
            raise RunError("a run's backend is not an option of its loss; set MIBFAST_BACKEND")
        for name, kind in (("modalities", str), ("split", (int, float))):
            value = getattr(self, name)
            if value is None and name == "modalities":
                continue
            if not isinstance(value, (list, tuple)) or not all(isinstance(x, kind) for x in value):
                raise RunError(f"{name} must be a list, got {value!r}")
            if name == "split" and not all(map(checks.is_finite, value)):
                raise RunError(f"split must hold finite numbers, got {list(value)}")
            # JSON has lists only.
            object.__setattr__(self, name, tuple(value))

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON holds them."""
        settings: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return settings

    def differences(self, other: RunConfig) -> list[str]:
        """Say, setting by setting, where `other` has something else."""
        mine, theirs = self.to_json(), other.to_json()
        # How often states are written does not change the result.
        del mine["checkpoint_minutes"]
        return [f"{name} {mine[name]!r} and not {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]


def read_settings(path: Path) -> dict[str, Any]:
    """Read settings from a JSON file: an object of a :class:`RunConfig`'s fields, or a run's own `config.json`.

    Raises
    ------
    RunError
        For a file that cannot be read, holds no such object, or names an unknown setting.
    """
    try:
        content = read_json(path)
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise RunError(f"{path} is not JSON: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("settings"), dict):
        content = content["settings"]
    if not isinstance(content, dict):
        raise RunError(f"{path} must hold an object of settings, got {type(content).__name__}")
    return checked_names(content, str(path))


def checked_names(settings: dict[str, Any], source: str) -> dict[str, Any]:
    """Return settings as they are; RunError for an unknown one."""
    valid = [each.name for each in dataclasses.fields(RunConfig)]
    for name in settings:
        if name not in valid:
            raise RunError(f"{source}: no setting {name!r}{nearest(name, valid)}")
    return settings
