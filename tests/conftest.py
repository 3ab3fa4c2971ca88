"""Makes ``small_models`` importable from every test folder (pytest puts this folder on the path)."""

import os

import pytest

from unigrpo.reports import comparison, curves


@pytest.fixture(scope="session", autouse=True)
def trackio_elsewhere(tmp_path_factory):
    """trackio reads where it writes when it is first imported: not into the cache of who runs the tests."""
    os.environ["TRACKIO_DIR"] = str(tmp_path_factory.mktemp("trackio"))


def plain(chart, *size):
    """A chart without its curves."""
    return f"<svg><title>{chart.name}</title></svg>"


@pytest.fixture(scope="session", autouse=True)
def charts_are_drawn_where_they_are_looked_at():
    """Drawing charts is most of the time of a tiny run: only the tests in ``reports`` look at them."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (curves, comparison):
            patch.setattr(module, "svg", plain)
        yield
