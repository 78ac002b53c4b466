"""mibfast: fast, exact losses of multimodal alignment and of the information bottleneck.

`mibfast.functional` has the operations, `mibfast.losses` the modules on top of them. See :func:`mibfast.info` for the
backends that this installation has, and :class:`mibfast.MibfastError` for the errors.
"""

from importlib.metadata import version as _version

from mibfast import bottleneck, functional, information, losses, nn, omib
from mibfast._backend import info, use_backend
from mibfast._check import BackendError, InputError, MibfastError, NothingPresentError

__version__ = _version("mibfast")

__all__ = [
    "BackendError",
    "InputError",
    "MibfastError",
    "NothingPresentError",
    "__version__",
    "bottleneck",
    "functional",
    "info",
    "information",
    "losses",
    "nn",
    "omib",
    "use_backend",
]
