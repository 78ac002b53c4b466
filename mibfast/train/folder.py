"""A run's folder, whole at any moment, and read with errors that say what is wrong with it.

- `config.json`: settings, versions, the data's fingerprint and shapes; written first.
- `resume.pt`: the last state to go on from; gone once the run has ended.
- `weights.safetensors`: of the best epoch.
- `metrics.csv`: a row an epoch.
- `steps.csv`: of a fusion whose loss has terms, their means over every so many steps of the last stage.
- `beta.json`: how OMIB's beta was found, where it was not given.
- `learning_curves.png`; of an alignment `embeddings.png`, of OMIB `modality_weights.png`, its weights r by step.
- `metrics.json`: the rows of `metrics.csv`, the best epoch and checksums; written last, so that its presence says that
  the run has ended.
- `tensorboard/`, where TensorBoard is installed; `evaluation/`, by `mibfast evaluate`.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mibfast.data.file_names import TEMPORARY, why_no_file_name
from mibfast.data.opening import open_regular, read_bytes
from mibfast.train.errors import RunError
from mibfast.train.json_files import NUMBER, check_form, read_json, sha256

FORMAT = 2
CONFIG, RESUME, WEIGHTS = "config.json", "resume.pt", "weights.safetensors"
METRICS_TABLE, METRICS = "metrics.csv", "metrics.json"
STEPS_TABLE, BETA, PLAN = "steps.csv", "beta.json", "plan.json"
_METRICS = {
    "epochs": [{"train_loss": NUMBER, "validation_loss": NUMBER}],
    "best_epoch": int,
    "weights_sha256": str,
    "sha256": str,
}


class RunFolder:
    """A run's folder, which may not be there yet.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def begun(self) -> bool:
        """Whether a run has begun here."""
        return os.path.lexists(self.path / CONFIG)

    @property
    def ended(self) -> bool:
        """Whether the run here has ended."""
        return os.path.lexists(self.path / METRICS)

    def create(self) -> None:
        """Make the folder; RunError where it holds something else, or cannot be made."""
        with self._writing(""):
            self.path.mkdir(parents=True, exist_ok=True)
            holds = any(not name.startswith(".") for name in os.listdir(self.path))
        if holds:
            raise RunError(f"{self.path} exists and is not empty; choose another folder")

    def claim(self, plan: Mapping[str, Any]) -> None:
        """Make the folder of a plan, kept in `plan.json`; RunError where it is that of another plan."""
        if not os.path.lexists(self.path / PLAN):
            self.create()
            self.write_json(PLAN, plan)
            return
        kept = self.read_json(PLAN, object)
        if kept != plan:
            others = [key for key in plan if not isinstance(kept, dict) or kept.get(key) != plan[key]]
            named = dict.fromkeys("data" if key == "fingerprint" else key for key in others)
            raise RunError(f"{self.path} was begun with other {', '.join(named)}; choose another folder")

    def check(self) -> None:
        """Raise RunError where nothing can be written into the folder, before there is anything to write."""
        with self._writing(""):
            self.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK):
                raise PermissionError(errno.EACCES, "Permission denied")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; RunError where another one does."""
        with self._writing(".lock"):
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunError(f"{self.path} is in use by another process") from error
            self._sweep()
            yield
        finally:
            # The file stays: another process that has opened it would otherwise lock a removed file.
            os.close(handle)

    def _sweep(self) -> None:
        # Left by a process that was killed while writing.
        with self._writing(""):
            for leftover in self.path.rglob(TEMPORARY.format("*")):
                if leftover.is_symlink() or leftover.is_file():
                    leftover.unlink()

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"cannot write {self.path / name}: {error.strerror or error}"
                + ("; what was there is as it was" if self.begun else "")
            ) from error

    def write(self, name: str, fill: Callable[[Path], object]) -> None:
        """Write a file by `fill(path)`, which then replaces the one of that name in one step.

        Raises
        ------
        RunError
            For a name that is not that of a file in this folder or, with slashes, in folders of it; and where it cannot
            be written: the file that was there stays, or, where only the folder could not be synchronised, the new one.
        """
        for part in name.split("/"):
            why = why_no_file_name(part)
            if why is not None:
                raise RunError(f"nothing is written into {self.path} as {name!r}: {why}")
        target = self.path / name
        partial = target.with_name(TEMPORARY.format(target.name))
        with self._writing(name):
            target.parent.mkdir(parents=True, exist_ok=True)
            # Through a link of that name, its target would be overwritten.
            partial.unlink(missing_ok=True)
            try:
                fill(partial)
                with open(partial, "rb+") as file:
                    os.fsync(file.fileno())
                os.replace(partial, target)
                folder = os.open(target.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
            except BaseException:
                with suppress(OSError):
                    partial.unlink(missing_ok=True)
                raise

    def write_json(self, name: str, content: Any) -> None:
        """Write JSON; see :meth:`write`."""
        self.write(name, lambda path: path.write_text(json.dumps(content, indent=1) + "\n"))

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write `metrics.json` with a checksum of its own; see :meth:`write`."""
        self.write_json(METRICS, {**metrics, "sha256": sha256(metrics)})

    def write_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows as CSV, empty where a row has no such key; see :meth:`write`."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write(name, lambda path: path.write_text(text.getvalue()))

    def write_weights(self, weights: Mapping[str, Tensor]) -> str:
        """Write the weights as safetensors, see :meth:`write`, and return their SHA-256."""
        from safetensors.torch import save

        # Cloned: encoders may share weights, of which the file holds one copy each.
        content = save({name: x.detach().cpu().clone().contiguous() for name, x in weights.items()})
        self.write(WEIGHTS, lambda path: path.write_bytes(content))
        return hashlib.sha256(content).hexdigest()

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Write the state to resume from; see :meth:`write`."""
        # In memory first: torch's error for a full disk gives no reason.
        content = io.BytesIO()
        torch.save(dict(state), content)
        self.write(RESUME, lambda path: path.write_bytes(content.getbuffer()))

    def read_config(self) -> dict[str, Any]:
        """Return what `config.json` holds; RunError where it is not there, damaged or of another version."""
        if not os.path.isdir(self.path):
            raise RunError(f"{self.path} is not a folder; expected that of a run")
        if not self.begun:
            raise RunError(f"{self.path} is not a run's folder: it has no {CONFIG}")
        content = self.read_json(CONFIG, object)
        if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
            raise RunError(f"{self.path / CONFIG} is damaged: it holds no settings")
        if content.get("format") != FORMAT:
            raise RunError(
                f"{self.path} is of another version: format {content.get('format')!r}, and this mibfast reads {FORMAT}"
            )
        return content

    def read_metrics(self) -> dict[str, Any]:
        """Return what `metrics.json` holds; RunError where the run has not ended, or the file is damaged."""
        if not self.ended:
            raise RunError(f"the run in {self.path} has not ended; `mibfast fit ... --resume` goes on with it")
        metrics: dict[str, Any] = self.read_json(METRICS, _METRICS)
        if not 1 <= metrics["best_epoch"] <= len(metrics["epochs"]):
            best = f"{metrics['best_epoch']} of {len(metrics['epochs'])}"
            raise RunError(f"{self.path / METRICS} is damaged: the best epoch is {best}")
        if metrics.pop("sha256") != sha256(metrics):
            raise RunError(f"{self.path / METRICS} is damaged: its numbers are not those that were written")
        return metrics

    def read_json(self, name: str, form: Any) -> Any:
        """Return what a JSON file holds; RunError where it cannot be read, is damaged or of another form.

        The form is as :func:`mibfast.train.json_files.check_form` takes it.
        """
        try:
            content = read_json(self.path / name)
            check_form(content, form)
        except OSError as error:
            raise RunError(f"cannot read {self.path / name}: {error.strerror or error}") from error
        except ValueError as error:
            raise RunError(f"{self.path / name} is damaged: {error}") from error
        return content

    def read_weights(self, checksum: str | None = None) -> dict[str, Tensor]:
        """Return the weights; RunError where they are not there, or damaged: of another SHA-256."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self.path / WEIGHTS
        if not os.path.lexists(path):
            raise RunError(f"{self.path} has no {WEIGHTS}: the run has not ended, or the file was removed")
        try:
            content = read_bytes(path)
            if checksum is not None and hashlib.sha256(content).hexdigest() != checksum:
                raise RunError(f"{path} is damaged: its bytes are not those that were written")
            weights: dict[str, Tensor] = load(content)
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror or error}") from error
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            # An unknown dtype raises KeyError.
            if isinstance(error, RunError):
                raise
            raise RunError(f"{path} is damaged: {error}") from error
        return weights

    def read_state(self) -> dict[str, Any] | None:
        """Return the state to resume from, or None where none was written; RunError where it is damaged."""
        path = self.path / RESUME
        if not os.path.lexists(path):
            return None
        try:
            with open_regular(path) as file, zipfile.ZipFile(file) as archive:
                # torch.save does not compress; a compressed file could expand beyond memory.
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise RunError(f"{path} is damaged: it is compressed")
                # torch does not check checksums.
                hurt = archive.testzip()
            if hurt is not None:
                raise RunError(f"{path} is damaged: {hurt} has another checksum")
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror or error}") from error
        except Exception as error:
            # What torch raises depends on where the file is damaged.
            if isinstance(error, RunError):
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RunError(f"{path} is damaged: {reason}") from error
        return state

    def remove_state(self) -> None:
        """Remove the state to resume from, which a run that has ended does not need."""
        with self._writing(RESUME):
            (self.path / RESUME).unlink(missing_ok=True)
