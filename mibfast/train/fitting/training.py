"""Training of alignments and fusions, in memory or as a run in a folder that can be interrupted at any moment."""

from __future__ import annotations

import importlib.util
import logging
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.seed import isolate_rng

import mibfast
from mibfast import _check
from mibfast._termination import deferred
from mibfast.data import MultimodalData
from mibfast.data.sources import absolute_name
from mibfast.train.errors import DivergedError, RunError
from mibfast.train.fitting.config import RunConfig, checked_names
from mibfast.train.fitting.modules import AlignmentModule, FusionModule, MultimodalModule, build_module
from mibfast.train.fitting.opening import load_weights, open_run, read_description
from mibfast.train.fitting.recording import EpochsOfData, Recording
from mibfast.train.fitting.requirements import (
    estimated_beta,
    fitting_target,
    open_data,
    refuse_beta,
    refuse_few_samples,
    refuse_settings,
    usable,
)
from mibfast.train.fitting.run import EMBEDDED_ROWS, Run
from mibfast.train.fitting.targets import class_notes
from mibfast.train.folder import BETA, CONFIG, FORMAT, METRICS_TABLE, RESUME, STEPS_TABLE, RunFolder
from mibfast.train.methods import Alignment, Fusion, method
from mibfast.train.pictures import draw_embeddings, draw_learning_curves, draw_modality_weights
from mibfast.train.progress import Report, Task, reported

# Samples of all modalities together in the picture of embeddings.
_PICTURED_POINTS = 900
# The centre of anomaly detection is the mean prediction of this many samples.
_CENTRED_SAMPLES = 16_384


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
    config = RunConfig(**{**settings, "method": method, "data": name})
    if output is None and resume:
        raise RunError("resuming needs the run's folder as output")
    folder = None if output is None else RunFolder(Path(output))
    if folder and folder.begun:
        if not resume:
            raise RunError(f"{folder.path} holds a run already; choose another folder, or --resume")
        differences = read_description(folder).config.differences(config)
        if differences:
            raise RunError(f"{folder.path} is a run of another config: it has {', '.join(differences)}")
    return _Fitting(config, data, folder, report, pictures).run()


class _Fitting:
    """One call of :func:`fit`, after its arguments were checked."""

    def __init__(
        self,
        config: RunConfig,
        data: str | MultimodalData,
        folder: RunFolder | None,
        report: Report,
        pictures: bool,
    ) -> None:
        self.config, self.folder, self.report, self.pictures = config, folder, report, pictures
        self.beta: Mapping[str, Any] | None = None
        self.method = method(config.method)
        refuse_settings(config)
        # Before the data are read, which can take long, for two modalities; then for those of the data.
        if isinstance(self.method, Alignment):
            with isolate_rng():
                self.method.loss(2, config.features, **config.loss)
        self.data = open_data(config, data)
        self.target = fitting_target(config, self.data)
        refuse_few_samples(self.data, config, self.target)
        self.fingerprint = self.data.fingerprint()

    def _say_what_is_trained(self) -> None:
        training, validation = (
            len(usable(self.data, self.config, split, self.target)) for split in ("train", "validation")
        )
        what = "alignment, without labels" if self.target is None else self.target.title
        self.report.say(
            f"{self.method.title}: {what}, of {', '.join(self.data.views)}; "
            f"{training} training, {validation} validation samples"
        )
        if self.target is not None:
            for note in class_notes(self.target, self.data):
                self.report.say(note)

    def run(self) -> Run:
        folder = self.folder
        if folder and folder.begun:
            if read_description(folder).fingerprint != self.fingerprint:
                raise RunError(f"{self.data.name} does not hold the data that the run in {folder.path} began with")
            if folder.ended:
                self.report.say(f"the run in {folder.path} has ended already")
                return open_run(folder.path, data=self.data, encoders=self.config.encoders)
        # Before the folder is made, so that wrong settings or data leave nothing behind.
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
                try:
                    recording.restore(state, module, self._batches)
                except RunError as error:
                    raise RunError(f"{folder.path / RESUME} is damaged: {error}") from error
                load_weights(module, recording.weights, f"{folder.path / RESUME}")
                self.report.say(f"going on after step {recording.step}, in epoch {len(recording.epochs) + 1}")
            try:
                run = self._trained(module, recording)
            except DivergedError as error:
                if not recording.best_epoch:
                    raise
                # Going on would end the same way: the run ends here, with the best weights so far.
                run = self._kept(module, recording)
                self._finish(folder, run, recording)
                raise DivergedError(f"{error}; the run has ended with the weights of epoch {run.best_epoch}") from error
            self._finish(folder, run, recording)
        return run

    @property
    def _batches(self) -> int:
        """The number of batches of an epoch."""
        return len(usable(self.data, self.config, "train", self.target)) // self.config.batch_size

    def _recording(self) -> Recording:
        return Recording(self.config, self.method.stages if isinstance(self.method, Fusion) else ("main",))

    def _trained(self, module: AlignmentModule | FusionModule, recording: Recording) -> Run:
        if not recording.over:
            self._say_what_is_trained()
            self._train(module, recording)
        return self._kept(module, recording)

    def _kept(self, module: AlignmentModule | FusionModule, recording: Recording) -> Run:
        module.load_state_dict(recording.best_weights)
        return Run(
            module.cpu().eval(),
            self.data,
            self.config,
            recording.epochs,
            recording.best_epoch,
            self.folder.path if self.folder else None,
            self.target,
            self.beta,
        )

    def _module(self, folder: RunFolder | None) -> AlignmentModule | FusionModule:
        data, config = self.data, self.config
        with self.report.task("reading the data", len(data) * len(data.views)) as task:
            statistics = data.statistics(lambda _, done, total: task.reach(done))
        if folder and folder.begun:
            self.beta = read_description(folder).beta
        elif isinstance(self.method, Fusion) and self.method.needs_beta(config.loss):
            self.beta = estimated_beta(config, data, self.target, self.report)
            refuse_beta(self.beta)
        with isolate_rng():
            torch.manual_seed(config.seed)
            shapes = {name: view.shape[1:] for name, view in data.views.items()}
            module = build_module(config, shapes, statistics, self.target, self.beta)
        if isinstance(module, FusionModule) and module.target.task == "anomaly-detection":
            chosen = usable(data, config, "train", self.target)[:_CENTRED_SAMPLES]
            starts = range(0, len(chosen), EMBEDDED_ROWS)
            module.set_center(data.take(chosen[start : start + EMBEDDED_ROWS]) for start in starts)
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
        loggers: Any = False
        if self.folder and importlib.util.find_spec("tensorboard"):
            from lightning.pytorch.loggers import TensorBoardLogger

            loggers = TensorBoardLogger(self.folder.path, name="tensorboard", version="")
        total = recording.total_epochs * self._batches
        with (
            self.report.task(f"training {self.method.title}", total, recording.step) as task,
            deferred() as recording.termination,
            _quiet_lightning(),
            isolate_rng(),
        ):
            trainer = _Trainer(
                max_epochs=recording.total_epochs - len(recording.epochs),
                accelerator="cuda" if torch.cuda.is_available() else "cpu",
                devices=1,
                logger=loggers,
                callbacks=[recording, _ProgressOfTraining(task, recording)],
                enable_checkpointing=True,
                enable_model_summary=False,
                enable_progress_bar=False,
                num_sanity_val_steps=0,
                reload_dataloaders_every_n_epochs=1,
            )
            trainer.fit(module, datamodule=EpochsOfData(self.data, self.config, recording, self.target))
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
                # A picture that fails must not cost a run.
                self.report.say(f"no picture: {error}")
        metrics = {"best_epoch": run.best_epoch, "weights_sha256": checksum, "epochs": list(run.epochs)}
        folder.write_metrics(metrics)
        folder.remove_state()

    def _draw(self, folder: RunFolder, run: Run, recording: Recording) -> None:
        title = self.method.title
        # The losses of a warm-up are not comparable.
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


class _Trainer(lightning.Trainer):
    @property
    def received_sigterm(self) -> bool:
        """False: Lightning would stop within a validation, where no state can be resumed; the recording stops it."""
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


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's remarks, and let Ctrl-C raise KeyboardInterrupt; Lightning would exit and then ignore it."""
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
                # A skipped batch.
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
