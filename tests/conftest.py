"""Eight virtual CPU devices for every test, and where real data stands."""

import os

# Compiling is most of the suite's time; unoptimised code is enough for its small arrays.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
    ]
)
os.environ["JAX_PLATFORMS"] = "cpu"

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def shared() -> Path:
    """The folder of real data sets and models beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED.name}/ beside the checkout")
    return SHARED
