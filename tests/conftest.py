"""What every test needs: one torch thread, no download, reproducible examples."""

from __future__ import annotations

import os

from hypothesis import settings

# Set before anything imports torch, so that a test that needs no torch does not pay for it. Sums are bit-identical
# only at an equal number of threads, and two test processes share the cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# No deadline: a shared machine is sometimes slow. Derandomised: a run that passed passes again.
settings.register_profile("clbench", deadline=None, derandomize=True)
settings.load_profile("clbench")
