"""Imports that look for no garbage."""

from __future__ import annotations

import gc

import pytest

from rlkit.importing import importing


def test_garbage_is_looked_for_before_and_after_but_not_within() -> None:
    assert gc.isenabled()
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_whoever_looks_for_none_is_left_so_also_where_an_import_fails() -> None:
    gc.disable()
    try:
        with pytest.raises(ImportError), importing():
            raise ImportError("no such library")
        assert not gc.isenabled()
    finally:
        gc.enable()
