"""Triton's interpreter with a NumPy that is newer than it knows.

Triton 3.6 turns arrays of one number into ints, for bounds of loops, which NumPy 2.4 refuses.
"""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def mend() -> None:
    """Let interpreted kernels take numbers as bounds of loops; once a process, before the first is run."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched
