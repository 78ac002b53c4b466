"""Training of alignments and fusions, in memory or as a run in a folder that can be interrupted at any moment."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

import mibfast
from mibfast import _check, omib
from mibfast._termination import deferred
from mibfast.data import DataError, MultimodalData, load
from mibfast.data.multimodal import channel_axes, why_no_modality
from mibfast.data.sources import absolute_name
from mibfast.train.alignment import AlignmentModule
from mibfast.train.config import RunConfig, checked_names
from mibfast.train.encoders import build_encoders
from mibfast.train.errors import DivergedError, RunError
from mibfast.train.folder import BETA, CONFIG, FORMAT, METRICS, METRICS_TABLE, RESUME, STEPS_TABLE, RunFolder
from mibfast.train.fusion import FusionModule
from mibfast.train.json_files import NUMBER, check_form
from mibfast.train.methods import Alignment, Fusion, method
from mibfast.train.module import MultimodalModule, refuse_more_than_memory, sketched
from mibfast.train.pictures import draw_embeddings, draw_learning_curves, draw_modality_weights
from mibfast.train.progress import Report, Task, reported
from mibfast.train.recording import EpochsOfData, Recording, usable
from mibfast.train.targets import Target, class_notes, target_of

# In this many samples of every modality, pictures show what there is to see.
_PICTURED_POINTS = 900
_EMBEDDED_ROWS = 4096
# The centre of anomaly detection is the mean of what is predicted of this many samples.
_CENTRED_SAMPLES = 16_384
# As many as estimates of beta take.
_BETA_SAMPLES = 4096


@dataclass(frozen=True)
class Run:
    """A trained alignment or fusion.

    Attributes
    ----------
    module : AlignmentModule or FusionModule
        With the weights of the best epoch, in evaluation mode; see :class:`mibfast.train.recording.Recording`.
    data : MultimodalData
    config : RunConfig
    epochs : list of dict
        A row an epoch, see :class:`mibfast.train.recording.Recording`.
    best_epoch : int
        From 1.
    path : Path, optional
        The run's folder.
    target : Target, optional
        What a fusion predicts.
    beta : mapping, optional
        Where a fusion's bottleneck weight was estimated: `beta`, and how it was found.
    """

    module: AlignmentModule | FusionModule
    data: MultimodalData
    config: RunConfig
    epochs: Sequence[Mapping[str, Any]]
    best_epoch: int
    path: Path | None = None
    target: Target | None = None
    beta: Mapping[str, Any] | None = None

    @property
    def method(self) -> Alignment | Fusion:
        """The method that it was trained by."""
        return method(self.config.method)

    @property
    def unit(self) -> str:
        """Of its losses."""
        chosen = self.method
        if isinstance(chosen, Alignment):
            return chosen.unit
        return "" if self.target is None else self.target.unit

    def predict(self, split: str = "test") -> Tensor:
        """Return a fusion's predictions of a split's samples, which must have all modalities.

        Logits [n, classes], in the order of `target.classes`; targets [n, targets]; or anomaly scores [n, 1].

        Raises
        ------
        RunError
            For an alignment, which predicts nothing.
        DataError
            Where a sample lacks a modality, or holds NaN or infinity.
        """
        return self.predict_samples(self.data.indices(split))

    def predict_samples(self, indices: Tensor) -> Tensor:
        """Return a fusion's predictions of samples; see :meth:`predict`."""
        module = self.module
        if not isinstance(module, FusionModule):
            raise RunError(f"{self.method.title} aligns modalities and predicts nothing")
        if not bool(self.data.has(indices, list(self.data.views)).all()):
            raise DataError(f"{self.data.name}: a fusion predicts samples that have all modalities, and some lack one")
        with torch.inference_mode():
            return torch.cat([module(views) for views in self._in_parts(indices)])

    def embed(self, split: str = "test", *, representations: bool = False) -> dict[str, Tensor]:
        """Return each modality's embeddings [n, features] of a split's samples (float32), not normalised.

        Where a sample lacks the modality it is zeros; `data.presence` says where.

        Parameters
        ----------
        split : {"train", "validation", "test", "all"}
        representations : bool
            What the encoders return, before the projection heads: what downstream tasks use.
        """
        _check.boolean("embed", "representations", representations)
        parts: dict[str, list[Tensor]] = {name: [] for name in self.data.views}
        for rows in self.embed_in_parts(self.data.indices(split), representations=representations):
            for name, z in rows.items():
                parts[name].append(z)
        return {name: torch.cat(each) for name, each in parts.items()}

    def embed_in_parts(self, indices: Tensor, *, representations: bool = False) -> Iterator[dict[str, Tensor]]:
        """Yield the embeddings of samples, some thousand at a time; DataError for NaN or infinity among them.

        RunError for a fusion, which has no embeddings but representations only.
        """
        module = self.module
        if not representations and not isinstance(module, AlignmentModule):
            raise RunError(f"{self.method.title} is a fusion and makes no embeddings; it has representations")
        for views in self._in_parts(indices):
            with torch.inference_mode():
                found: dict[str, Tensor] = module.represent(views) if representations else module(views)
            yield found

    def _in_parts(self, indices: Tensor) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(indices), _EMBEDDED_ROWS):
            part = indices[start : start + _EMBEDDED_ROWS]
            views = self.data.take(part)
            for name in self.data.views:
                x = views[name]
                if not torch.isfinite(x).all():
                    row = int(part[int((~torch.isfinite(x.flatten(1))).any(1).nonzero()[0])])
                    raise DataError(f"{self.data.name}: modality {name!r} holds NaN or infinity in sample {row}")
            yield views


def fit(
    method: str,
    data: str | MultimodalData,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    pictures: bool = True,
    progress: bool | Report = True,
    **settings: Any,
) -> Run:
    """Train encoders of several modalities, by an alignment of them or a fusion that predicts labels.

    The same data, settings and machine give the same weights bit for bit, however often training was interrupted.
    SIGTERM ends it with SystemExit(143) once the step at hand is done and its state written, after an epoch's last step
    once that is validated; in a process that handles SIGTERM itself its handler decides.

    Parameters
    ----------
    method : str
        One of :data:`mibfast.train.METHODS`: alignments as `"ova-ib"`, `"clip"`, `"gram"`, or fusions as `"omib"`,
        `"concatenation"`, `"misa"`, ..., which train on the samples that have all modalities.
    data : str or MultimodalData
        A name for :func:`mibfast.data.load`, or data at hand, which then decide modalities and splits.
    output : str or Path, optional
        Folder of the run; without, nothing is written and training cannot be resumed.
    resume : bool
        Go on with the run in `output`, or begin it where there is none. Settings must be those of the run.
    pictures : bool
        Draw learning curves and embeddings into the folder.
    progress : bool or Report
        Show it, on stderr.
    **settings
        Fields of :class:`mibfast.train.RunConfig`: `modalities`, `epochs`, `batch_size`, `learning_rate`, `seed`,
        `patience`, `encoders`, `loss`, ...; of fusions `task`, `normal_class` and `warm_up_epochs`.

    Returns
    -------
    Run

    Raises
    ------
    RunError
        For settings out of range, a folder that holds something else or cannot be written, a state that is damaged or
        of other settings, a loss that becomes NaN.
    DataError
        For data that cannot be used, see :func:`mibfast.data.load`.

    Examples
    --------
    >>> from mibfast import train
    >>> run = train.fit("ova-ib", "digits", epochs=1, progress=False)
    >>> {name: list(z.shape) for name, z in run.embed("test").items()}
    {'pixels': [359, 256], 'frequencies': [359, 256], 'profiles': [359, 256]}
    >>> train.fit("concatenation", "digits", epochs=1, progress=False).predict("test").shape
    torch.Size([359, 10])
    """
    report = reported("fit", progress)
    _check.boolean("fit", "resume", resume)
    _check.boolean("fit", "pictures", pictures)
    checked_names({**settings, "method": method}, "fit")
    name = absolute_name(data) if isinstance(data, str) else data.name
    given = RunConfig(**{**settings, "method": method, "data": name})
    if output is None and resume:
        raise RunError("resuming needs the run's folder as output")
    folder = None if output is None else RunFolder(Path(output))
    if folder and folder.begun:
        if not resume:
            raise RunError(f"{folder.path} holds a run already; choose another folder, or --resume")
        _refuse_another_config(folder, given)
    return _Fitting(given, data, folder, report, pictures).run()


@dataclass(frozen=True)
class _Described:
    """What a run's `config.json` says of it."""

    config: RunConfig
    shapes: Mapping[str, tuple[int, ...]]
    fingerprint: str
    target: Target | None
    beta: Mapping[str, Any] | None


def _described(folder: RunFolder) -> _Described:
    """Read what a run's folder says of it; RunError where that is damaged, or nothing that a run has said."""
    place, found = folder.path / CONFIG, folder.read_config()
    config_of_file = checked_names(found["settings"], str(place))
    try:
        config = RunConfig(**config_of_file)
        check_form(found, {"data": {"shapes": {str: [int]}, "fingerprint": str}})
        shapes = {name: tuple(shape) for name, shape in found["data"]["shapes"].items()}
        for name, shape in shapes.items():
            why = why_no_modality(name)
            if why is not None:
                raise ValueError(f"a modality cannot be called {name!r}: {why}")
            if not all(1 <= size < 2**63 for size in shape):
                raise ValueError(f"samples of modality {name!r} cannot be of shape {list(shape)}")
        target = Target.from_json(found["target"]) if "target" in found else None
        beta = found.get("beta")
        if beta is not None:
            check_form(beta, {"beta": NUMBER}, "its beta")
        if not shapes or isinstance(method(config.method), Fusion) != (target is not None):
            raise ValueError("it does not say of what modalities and for what target it is")
    except (TypeError, ValueError) as error:
        raise RunError(f"{place} is damaged: {error}") from error
    return _Described(config, shapes, found["data"]["fingerprint"], target, beta)


def _refuse_another_config(folder: RunFolder, given: RunConfig) -> None:
    differences = _described(folder).config.differences(given)
    if differences:
        raise RunError(f"{folder.path} is a run of another config: it has {', '.join(differences)}")


class _Fitting:
    """One call of :func:`fit`, after its arguments were looked at."""

    def __init__(
        self,
        config: RunConfig,
        data: str | MultimodalData,
        folder: RunFolder | None,
        report: Report,
        pictures: bool,
    ) -> None:
        self.pictures = pictures
        self.config, self.folder, self.report = config, folder, report
        self.beta: Mapping[str, Any] | None = None
        self.method = method(config.method)
        refuse_settings(config)
        # Before data are read, which can take long, with the fewest modalities there are; then with those of the data.
        if isinstance(self.method, Alignment):
            with isolate_rng():
                self.method.loss(2, config.features, **config.loss)
        self.data = open_data(config, data)
        self.target = fitting_target(config, self.data)
        _refuse_few_samples(self.data, config, self.target)
        self.fingerprint = self.data.fingerprint()

    def _say_what_is_trained(self) -> None:
        parts = ", ".join(
            f"{len(usable(self.data, self.config, split, self.target))} {title}"
            for split, title in (("train", "training"), ("validation", "validation"))
        )
        what = "alignment, without labels" if self.target is None else self.target.title
        self.report.say(f"{self.method.title}: {what}, of {', '.join(self.data.views)}; {parts} samples")
        if self.target is not None:
            for note in class_notes(self.target, self.data):
                self.report.say(note)

    def run(self) -> Run:
        folder = self.folder
        if folder and folder.begun:
            if _described(folder).fingerprint != self.fingerprint:
                raise RunError(f"{self.data.name} does not hold the data that the run in {folder.path} began with")
            if folder.ended:
                self.report.say(f"the run in {folder.path} has ended already")
                return open_run(folder.path, data=self.data, encoders=self.config.encoders)
        # Before there is a folder: what is wrong with the settings or the data leaves nothing behind.
        module = self._module(folder)
        if folder is None:
            return self._trained(module, self._recording())
        if not folder.begun:
            folder.create()
        with folder.locked():
            if folder.ended:
                raise RunError(f"another process has ended the run in {folder.path} meanwhile")
            if not folder.begun:
                folder.write_json(CONFIG, self._description())
            if self.beta is not None:
                folder.write_json(BETA, self.beta)
            recording = self._recording()

            def save(state: Mapping[str, Any]) -> None:
                folder.write_state(state)
                self._write_tables(folder, recording)

            recording.save = save
            state = folder.read_state()
            if state is not None:
                batches = len(usable(self.data, self.config, "train", self.target)) // self.config.batch_size
                try:
                    recording.restore(state, module, batches)
                except RunError as error:
                    raise RunError(f"{folder.path / RESUME} is damaged: {error}") from error
                _load_weights(module, recording.weights, f"{folder.path / RESUME}")
                self.report.say(f"going on after step {recording.step}, in epoch {len(recording.epochs) + 1}")
            try:
                run = self._trained(module, recording)
            except DivergedError as error:
                if not recording.best_epoch:
                    raise
                # To go on would end the same way: the run ends here, with what is best so far.
                run = self._kept(module, recording)
                self._finish(folder, run, recording)
                raise DivergedError(f"{error}; the run has ended with the weights of epoch {run.best_epoch}") from error
            self._finish(folder, run, recording)
        return run

    def _recording(self) -> Recording:
        return Recording(self.config, self.method.stages if isinstance(self.method, Fusion) else ("main",))

    def _trained(self, module: AlignmentModule | FusionModule, recording: Recording) -> Run:
        if not recording.over:
            self._say_what_is_trained()
            self._train(module, recording)
        return self._kept(module, recording)

    def _kept(self, module: AlignmentModule | FusionModule, recording: Recording) -> Run:
        module.load_state_dict(recording.best_weights)
        path = self.folder.path if self.folder else None
        rows, best = recording.epochs, recording.best_epoch
        return Run(module.cpu().eval(), self.data, self.config, rows, best, path, self.target, self.beta)

    def _module(self, folder: RunFolder | None) -> AlignmentModule | FusionModule:
        data, config = self.data, self.config
        with self.report.task("reading the data", len(data) * len(data.views)) as task:
            statistics = data.statistics(lambda _, done, total: task.reach(done))
        if folder and folder.begun:
            self.beta = _described(folder).beta
        elif isinstance(self.method, Fusion) and self.method.needs_beta(config.loss):
            self.beta = estimated_beta(config, data, self.target, self.report)
            refuse_beta(self.beta)
        with isolate_rng():
            torch.manual_seed(config.seed)
            shapes = {name: view.shape[1:] for name, view in data.views.items()}
            module = _build_module(config, shapes, statistics, self.target, self.beta)
        if isinstance(module, FusionModule) and module.target.task == "anomaly-detection":
            chosen = usable(data, config, "train", self.target)[:_CENTRED_SAMPLES]
            starts = range(0, len(chosen), _EMBEDDED_ROWS)
            module.set_center(data.take(chosen[start : start + _EMBEDDED_ROWS]) for start in starts)
        return module

    def _description(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "settings": self.config.to_json(),
            "data": {
                "samples": len(self.data),
                "shapes": {name: list(view.shape[1:]) for name, view in self.data.views.items()},
                "splits": {name: len(part) for name, part in self.data.splits.items()},
                "present": {name: int(present.sum()) for name, present in self.data.presence.items()},
                "fingerprint": self.fingerprint,
            },
            **({} if self.target is None else {"target": self.target.to_json()}),
            **({} if self.beta is None else {"beta": self.beta}),
            "mibfast": mibfast.info(),
        }

    def _train(self, module: MultimodalModule, recording: Recording) -> None:
        config = self.config
        batches = len(usable(self.data, config, "train", self.target)) // config.batch_size
        total = recording.total_epochs * batches
        callbacks: list[lightning.Callback] = [recording]
        loggers: Any = False
        if self.folder and importlib.util.find_spec("tensorboard"):
            from lightning.pytorch.loggers import TensorBoardLogger

            loggers = TensorBoardLogger(self.folder.path, name="tensorboard", version="")
        with self.report.task(f"training {self.method.title}", total, recording.step) as task:
            callbacks.append(_ProgressOfTraining(task, recording))
            with deferred() as recording.termination, _as_a_guest(), isolate_rng():
                trainer = _Trainer(
                    max_epochs=recording.total_epochs - len(recording.epochs),
                    accelerator="cuda" if torch.cuda.is_available() else "cpu",
                    devices=1,
                    logger=loggers,
                    callbacks=callbacks,
                    enable_checkpointing=True,
                    enable_model_summary=False,
                    enable_progress_bar=False,
                    num_sanity_val_steps=0,
                    reload_dataloaders_every_n_epochs=1,
                )
                trainer.fit(module, datamodule=EpochsOfData(self.data, config, recording, self.target))
        skipped = sum(row["skipped_batches"] for row in recording.epochs)
        if skipped:
            self.report.say(
                f"{skipped:.0f} of {recording.step} batches were skipped: their samples had no modalities in common"
            )

    @staticmethod
    def _write_tables(folder: RunFolder, recording: Recording) -> None:
        for name, rows in ((METRICS_TABLE, recording.epochs), (STEPS_TABLE, recording.steps.rows)):
            if rows:
                folder.write_table(name, rows)

    def _finish(self, folder: RunFolder, run: Run, recording: Recording) -> None:
        checksum = folder.write_weights(run.module.state_dict())
        self._write_tables(folder, recording)
        if self.pictures:
            try:
                self._draw(folder, run, recording)
            except (ValueError, RuntimeError, ArithmeticError) as error:
                if isinstance(error, RunError):
                    raise
                # What cannot be drawn is no reason to lose a run.
                self.report.say(f"no picture: {error}")
        metrics = {"best_epoch": run.best_epoch, "weights_sha256": checksum, "epochs": list(run.epochs)}
        folder.write_json(METRICS, metrics)
        folder.remove_state()

    def _draw(self, folder: RunFolder, run: Run, recording: Recording) -> None:
        title = self.method.title
        # Losses of a warm-up are others.
        rows = [row for row in run.epochs if row.get("stage") == run.epochs[-1].get("stage")]
        curves = {title: {part: [row[f"{part}_loss"] for row in rows] for part in ("train", "validation")}}
        unit = run.unit
        kept = run.best_epoch - 1 - (len(run.epochs) - len(rows))
        folder.write("learning_curves.png", lambda path: draw_learning_curves(curves, path, unit, kept))
        if not isinstance(self.method, Alignment):
            steps = recording.steps.rows
            weights = {
                name[2:]: [row[name] for row in steps] for name in (steps[0] if steps else ()) if name[:2] == "r."
            }
            if weights:
                drawn = {title: ([row["step"] for row in steps], weights)}
                folder.write("modality_weights.png", lambda path: draw_modality_weights(drawn, path))
            return
        self.report.say("drawing test embeddings")
        chosen = run.data.sample("test", _PICTURED_POINTS // len(run.data.views), list(run.data.views))
        if not len(chosen):
            self.report.say("no picture of embeddings: no test sample has all modalities")
            return
        (embeddings,) = run.embed_in_parts(chosen)
        labels = None if run.data.labels is None else run.data.labels[chosen.numpy()]
        folder.write("embeddings.png", lambda path: draw_embeddings({title: embeddings}, labels, path))


def _build_module(
    config: RunConfig,
    shapes: Mapping[str, Sequence[int]],
    statistics: Mapping[str, tuple[Tensor, Tensor]],
    target: Target | None = None,
    beta: Mapping[str, Any] | None = None,
) -> AlignmentModule | FusionModule:
    """Build what is trained; RunError where it takes more memory than is free."""
    # Encoders of a user's own are asked for their size by nobody.
    named = {name: encoder for name, encoder in config.encoders.items() if ":" not in encoder}
    own = dataclasses.replace(config, encoders=named, dropout=0.0)
    refuse_more_than_memory(sketched(partial(_assembled, own, shapes, statistics, target, beta)))
    return _assembled(config, shapes, statistics, target, beta)


def _assembled(
    config: RunConfig,
    shapes: Mapping[str, Sequence[int]],
    statistics: Mapping[str, tuple[Tensor, Tensor]],
    target: Target | None,
    beta: Mapping[str, Any] | None,
) -> AlignmentModule | FusionModule:
    chosen, optimizer = method(config.method), (config.learning_rate, config.weight_decay)
    # With biases encoders can map all samples to the centre that normal ones are to be near.
    bias = target is None or target.task != "anomaly-detection"
    encoders = build_encoders(shapes, statistics, config.features, config.encoders, config.depth, bias, config.dropout)
    if isinstance(chosen, Alignment):
        loss = chosen.loss(len(shapes), config.features, **config.loss)
        return AlignmentModule(encoders, loss, config.features, *optimizer)
    if target is None:
        raise RunError("it says of no target what it is")
    options = {**({} if beta is None else {"beta": beta["beta"]}), **config.loss}
    return FusionModule(
        chosen.model(encoders, config.features, target.of(config.features), **options), target, *optimizer
    )


def refuse_settings(config: RunConfig) -> None:
    """Raise RunError for settings that the method does not have."""
    chosen = method(config.method)
    chosen.refuse_options(config.loss)
    if isinstance(chosen, Alignment):
        for name, default in (("task", "auto"), ("normal_class", None)):
            if getattr(config, name) != default:
                raise RunError(f"{name} is of fusions, which predict labels; {chosen.title} aligns modalities without")
    if config.warm_up_epochs is not None and not (isinstance(chosen, Fusion) and len(chosen.stages) > 1):
        raise RunError(f"{chosen.title} has no warm-up; leave warm_up_epochs out")


def estimated_beta(config: RunConfig, data: MultimodalData, target: Target | None, report: Report) -> dict[str, Any]:
    """Return a `beta`, drawn between the bounds that the training split's modalities give, and how they were found.

    RunError where the estimator does not take the data.
    """
    estimator = config.beta_estimator
    report.say(f"estimating the bounds of beta by {estimator!r}")
    chosen = usable(data, config, "train", target)
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(config.seed))
    views = data.take(chosen[order[:_BETA_SAMPLES].sort().values])
    try:
        with warnings.catch_warnings(), isolate_rng():
            # They are said with the report.
            warnings.filterwarnings("ignore", "estimate_beta: ")
            found = omib.estimate_beta({name: views[name] for name in data.views}, estimator=estimator)
    except (TypeError, ValueError) as error:
        raise RunError(str(error)) from error
    beta = found.draw(config.seed)
    report.say(f"{found}\ndrawn: beta {beta:.3g}")
    return {"beta": beta, **found.as_dict()}


def refuse_beta(found: Mapping[str, Any]) -> None:
    """Raise RunError for an estimated beta of a critic that told hardly any samples apart: it would be too large."""
    indistinct = found.get("indistinct", [])
    if indistinct:
        listed = ", ".join(f"H({name}) = {found['entropies'][name]['value']:.3g}" for name in indistinct)
        raise RunError(
            f"no beta can be estimated: {found['estimator']!r} told hardly any of {found['samples']} samples apart, "
            f"{listed} nats, and the bounds are too large; give a beta (--beta) or another beta_estimator"
        )


def fitting_target(config: RunConfig, data: MultimodalData) -> Target | None:
    """Return what a fusion is to predict of data, None for an alignment.

    Raises
    ------
    RunError, DataError
        Where data or settings do not fit the method.
    """
    chosen = method(config.method)
    if len(data.views) < 2:
        raise DataError(f"{data.name}: {chosen.title} needs at least 2 modalities, got {', '.join(data.views)}")
    with isolate_rng():
        if isinstance(chosen, Alignment):
            chosen.refuse_misfit(list(data.views), config.features, **config.loss)
            return None
        target = target_of(data, config.task, config.normal_class)
        chosen.refuse_misfit(list(data.views), config.features, target.of(config.features), **config.loss)
    return target


class _Trainer(lightning.Trainer):
    @property
    def received_sigterm(self) -> bool:
        """Lightning would end amid a validation, where there is no state to go on from: the recording ends training."""
        return False


class _ProgressOfTraining(lightning.Callback):
    def __init__(self, task: Task, recording: Recording) -> None:
        self._task, self._recording = task, recording

    def on_train_batch_end(self, *_: Any) -> None:
        done = self._recording.epochs
        note = f"epoch {len(done) + 1} of {self._recording.total_epochs}"
        if done:
            note += f", loss {done[-1]['train_loss']:.4g}, validation {done[-1]['validation_loss']:.4g}"
        self._task.reach(self._recording.step, note)


def open_data(config: RunConfig, data: str | MultimodalData | None = None) -> MultimodalData:
    """Return the data of a config, or other data at hand, with the modalities that the config names."""
    if isinstance(data, MultimodalData):
        return data if config.modalities is None else data.only(config.modalities)
    return load(config.data if data is None else data, config.seed, modalities=config.modalities, split=config.split)


def open_run(
    path: str | Path,
    *,
    data: str | MultimodalData | None = None,
    encoders: Mapping[str, str] | None = None,
    whole: bool = False,
) -> Run:
    """Open the folder of a run that has ended. Nothing that it holds is executed.

    Parameters
    ----------
    path : str or Path
    data : str or MultimodalData, optional
        Other data than the run's: of all its modalities or of some, in the shapes that it was trained on.
    encoders : mapping from a modality's name to "module:callable", optional
        Must name a user's own encoders once more, since opening the run imports them.
    whole : bool
        Do not split other data at random: they have `"all"` samples only, and may be few.

    Raises
    ------
    RunError
        For a folder that holds no run that has ended, that is damaged or of another version, or whose data are no
        longer what it was trained on.
    DataError
        For data that cannot be used or do not fit.
    """
    _check.boolean("open_run", "whole", whole)
    folder = RunFolder(Path(path))
    described = _described(folder)
    config, shapes, target, beta = described.config, described.shapes, described.target, described.beta
    metrics = folder.read_metrics()
    for name, encoder in config.encoders.items():
        if ":" in encoder and (encoders or {}).get(name) != encoder:
            raise RunError(
                f"{folder.path} was trained with an encoder of its own; to have it imported, "
                f"give it once more: --encoder {name}={encoder}"
            )
    weights = folder.read_weights(metrics["weights_sha256"])
    statistics = _placeholders(config, shapes, weights)
    with isolate_rng():
        if not any(":" in encoder for encoder in config.encoders.values()):
            # Before there is memory for what a damaged config asks for.
            sketch = sketched(partial(_assembled, config, shapes, statistics, target, beta))
            _refuse_other_shapes(sketch.state_dict(), weights, str(folder.path))
        module = _build_module(config, shapes, statistics, target, beta)
    _load_weights(module, weights, str(folder.path))
    if data is None:
        found = open_data(config)
        if found.fingerprint() != described.fingerprint:
            raise RunError(
                f"{found.name} does not hold the data, or not in the splits, that the run in {folder.path} was "
                "trained on; give the data to use"
            )
    else:
        other = dataclasses.replace(config, modalities=None)
        found = load(data, config.seed, split=None) if whole and isinstance(data, str) else open_data(other, data)
    found = _fitting_data(found, shapes)
    if target is not None and len(found.views) < len(shapes):
        raise DataError(f"{found.name}: a fusion needs all of {', '.join(shapes)}; got {', '.join(found.views)}")
    return Run(module.eval(), found, config, metrics["epochs"], metrics["best_epoch"], folder.path, target, beta)


def _placeholders(
    config: RunConfig, shapes: Mapping[str, Sequence[int]], weights: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    found, owner = {}, "" if isinstance(method(config.method), Alignment) else "model."
    for name, shape in shapes.items():
        mean = weights.get(f"{owner}encoders.{name}.0.mean")
        if mean is None or mean.shape != torch.Size(shape[len(channel_axes(1 + len(shape))) - 1 :]):
            raise RunError(f"the weights are damaged: none fit modality {name!r} of shape {list(shape)}")
        found[name] = (mean, torch.ones_like(mean))
    return found


def _fitting_data(data: MultimodalData, shapes: Mapping[str, tuple[int, ...]]) -> MultimodalData:
    names = [name for name in shapes if name in data.views]
    if not names:
        raise DataError(
            f"{data.name}: has none of the run's modalities {', '.join(shapes)}; got {', '.join(data.views)}"
        )
    for name in names:
        if data.views[name].shape[1:] != shapes[name]:
            raise DataError(
                f"{data.name}: modality {name!r} has samples {list(data.views[name].shape[1:])}, "
                f"and the run was trained on {list(shapes[name])}"
            )
    return data.only(names)


def _refuse_other_shapes(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> None:
    for name, x in expected.items():
        found = weights.get(name)
        if found is None or (found.shape, found.dtype) != (x.shape, x.dtype):
            there = "nothing" if found is None else f"{list(found.shape)} of {found.dtype}"
            expected_one = f"{list(x.shape)} of {x.dtype}"
            raise RunError(f"{source}: the weights do not fit the settings: {name} is {there}, expected {expected_one}")


def _load_weights(module: MultimodalModule, weights: Mapping[str, Tensor], source: str) -> None:
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise RunError(
            f"{source}: the weights do not fit the settings: {str(error).splitlines()[-1].strip()}"
        ) from error


def _refuse_few_samples(data: MultimodalData, config: RunConfig, target: Target | None) -> None:
    for split, title in (("train", "training"), ("validation", "validation")):
        for name, present in data.presence.items():
            if not present[data.indices(split).numpy()].any():
                raise DataError(
                    f"{data.name}: no {title} sample has modality {name!r}; leave it out, or split otherwise"
                )
    of_which = ""
    if data.presence:
        chosen = method(config.method)
        joint = isinstance(chosen, Fusion) or chosen.joint
        of_which = " with all modalities" if joint else " with two modalities or more"
    if target is not None and target.normal is not None:
        of_which = f" of class {target.normal}{of_which}"
    n, n_validation = (len(usable(data, config, split, target)) for split in ("train", "validation"))
    if config.batch_size > n:
        raise RunError(
            f"a batch of {config.batch_size} is larger than the training split, which has {n} samples{of_which}"
        )
    if n_validation < 2:
        found = f"{n_validation} sample{'s' * (n_validation != 1)}{of_which}"
        raise RunError(f"the validation split has {found}; a loss needs at least 2")


@contextmanager
def _as_a_guest() -> Iterator[None]:
    """Keep Lightning's remarks away, and Ctrl-C what it is in Python: Lightning exits, and ignores it from then on."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        handler = signal.getsignal(signal.SIGINT)
        with warnings.catch_warnings():
            for remark in (
                ".*does not have many workers.*",
                ".*LeafSpec.*",
                ".*GPU available but not used.*",
                ".*number of training batches.*",
                ".*Checkpoint directory.*",
                # Of a batch that is skipped.
                ".*training_step. returned .None.*",
            ):
                warnings.filterwarnings("ignore", remark)
            yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from stop
        raise
    finally:
        logger.setLevel(level)
