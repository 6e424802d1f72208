"""What every test stands on: one thread, seeded draws, a register of its own, and the folder it was started in."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _hermetic_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, and neither the user's register nor data root even where a fixture outlives a test. Subprocesses
    inherit the latter two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts what is in the background so, and the programs that tests interrupt would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUGURY_CONFIG", str(tmp_path_factory.mktemp("config")))
        patch.setenv("AUGURY_DATA", str(tmp_path_factory.mktemp("data")))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _hermetic(_hermetic_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Seeded, with an empty register of the user's own, in the working folder that the tests before were in."""
    # The fixture `monkeypatch` would be undone only after the check below.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUGURY_CONFIG", str(tmp_path_factory.mktemp("config")))
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        folder = Path.cwd()
        yield
        left_in = Path.cwd()
    os.chdir(folder)
    assert left_in == folder, "a test changed the working folder for those after it; use monkeypatch.chdir"
