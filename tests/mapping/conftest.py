import pytest

from fedfields import store


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """What survives a loss of power takes most of the time of a merge, and no test can see it."""
    monkeypatch.setattr(store, "flush", lambda path: path.stat())
