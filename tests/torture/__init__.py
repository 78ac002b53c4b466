"""Attempts to break the package: kernels between guard pages, fuzzed calls, damaged files, failing disks, kills.

`python -m torture` from `tests/` runs them, `make torture` at full length; each module says what it tries.
"""
