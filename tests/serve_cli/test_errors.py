"""What is said of an extra that is not installed, and what is no such case."""

import importlib

import pytest

from serve_cli.errors import MissingExtra, needs_extra


def test_a_missing_package_names_its_extra() -> None:
    message = "^mnist train needs the extra 'train', .*no_such_package is missing.*mnist-toolkit\\[train\\]"
    with pytest.raises(MissingExtra, match=message), needs_extra("train", "mnist train"):
        importlib.import_module("no_such_package.inside")


def test_a_missing_module_of_ours_is_an_error_of_ours() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"serve_cli\.nothing"), needs_extra("train"):
        importlib.import_module("serve_cli.nothing")
