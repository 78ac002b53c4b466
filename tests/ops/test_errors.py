"""The public family of errors: each of mibfast's own derives from it and from the built-in error it always was."""

import importlib
import pkgutil

import pytest
import torch

import mibfast
from mibfast import data, losses

FAMILY = {
    "BackendError": RuntimeError,
    "DataError": ValueError,
    "DivergedError": ValueError,
    "InputError": ValueError,
    "NothingPresentError": ValueError,
    "RunError": ValueError,
}


def own_errors() -> dict[str, type[Exception]]:
    """Every class of an error that a module of mibfast defines; warnings, and the end by a signal, are none."""
    pytest.importorskip("lightning")
    found = {}
    for module in pkgutil.walk_packages(mibfast.__path__, "mibfast."):
        if module.name.startswith(("mibfast.kernels", "mibfast._cuda")):
            continue
        for name, each in vars(importlib.import_module(module.name)).items():
            ours = isinstance(each, type) and each.__module__.startswith("mibfast")
            if ours and issubclass(each, Exception) and not issubclass(each, Warning):
                found[name] = each
    return found


def test_every_error_of_ours_is_of_the_family_and_keeps_its_base() -> None:
    found = own_errors()
    assert set(found) == {*FAMILY, "MibfastError"}
    for name, base in FAMILY.items():
        assert issubclass(found[name], mibfast.MibfastError)
        assert issubclass(found[name], base)


def test_the_family_is_public() -> None:
    for name in ("MibfastError", "InputError", "NothingPresentError", "BackendError"):
        assert name in mibfast.__all__
    assert issubclass(data.DataError, mibfast.InputError)


def test_one_clause_catches_what_mibfast_raises_of_its_own() -> None:
    z = torch.randn(4, 3)
    with pytest.raises(mibfast.MibfastError, match="unknown data set"):
        data.load("nowhere")
    with pytest.raises(mibfast.MibfastError, match="presence leaves nothing"):
        losses.PairwiseCLIPLoss()([z, z], torch.zeros(4, 2, dtype=torch.bool))
    with pytest.raises(mibfast.MibfastError, match="backend 'cuda' cannot be used"):
        mibfast.functional.info_nce(z, z, backend="cuda")
    with pytest.raises(mibfast.MibfastError, match="makes no latent"):
        mibfast.bottleneck.Bottleneck("X -- Y", "X -> Y", 1.0)


def test_a_backend_that_is_not_there_is_one_line(tmp_path, capsys) -> None:
    pytest.importorskip("lightning")
    from mibfast.cli.commands import run as command

    with mibfast.use_backend("cuda"):
        assert command(["fit", "clip", "--data", "digits", "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "backend 'cuda' cannot be used" in error
    assert error.count("\n") == 1
