"""Maps the folder `kernels/` to the package `mibfast.kernels`; everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

packages = find_packages(include=["mibfast", "mibfast.*"])
kernels = ["mibfast.kernels", *(f"mibfast.kernels.{name}" for name in find_packages("kernels"))]

setup(packages=packages + kernels, package_dir={"mibfast": "mibfast", "mibfast.kernels": "kernels"})
