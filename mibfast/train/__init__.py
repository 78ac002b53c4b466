"""Training and evaluation of alignments and fusions, as runs in folders.

`fitting` trains one method, `evaluation` scores a run, `comparison` ranks methods, `experiments` holds fixed studies;
each may import from those before it. The modules beside these folders serve all of them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mibfast.train.errors import DivergedError, RunError
    from mibfast.train.evaluation import evaluate
    from mibfast.train.fitting import Run, fit, open_run
    from mibfast.train.fitting.config import RunConfig
    from mibfast.train.fitting.modules import AlignmentModule, FusionModule
    from mibfast.train.methods import ALIGNMENTS, FUSIONS, METHODS

__all__ = [
    "ALIGNMENTS",
    "FUSIONS",
    "METHODS",
    "AlignmentModule",
    "DivergedError",
    "FusionModule",
    "Run",
    "RunConfig",
    "RunError",
    "evaluate",
    "fit",
    "open_run",
]

# Imported when asked for: Lightning alone takes seconds, and the help of a command needs the names of methods.
_MODULES = {
    **dict.fromkeys(("DivergedError", "RunError"), "errors"),
    "evaluate": "evaluation",
    **dict.fromkeys(("Run", "fit", "open_run"), "fitting"),
    "RunConfig": "fitting.config",
    **dict.fromkeys(("AlignmentModule", "FusionModule"), "fitting.modules"),
    **dict.fromkeys(("ALIGNMENTS", "FUSIONS", "METHODS"), "methods"),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
