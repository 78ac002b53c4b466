"""Kernels: arithmetic on arrays, one folder a primitive, one file a backend. No autograd, no modules.

`reference.py` is the formula in plain PyTorch, `cpu.py` is Numba, `cuda.py` launches what `csrc/` compiles. Nothing
here knows of the floors above.
"""
