"""Makes ``small_models`` importable from every test folder (pytest puts this folder on the path)."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def trackio_elsewhere(tmp_path_factory):
    """trackio reads where it writes when it is first imported: not into the cache of who runs the tests."""
    os.environ["TRACKIO_DIR"] = str(tmp_path_factory.mktemp("trackio"))
