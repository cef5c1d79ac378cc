"""Eight virtual CPU devices for every test, and where real data stands."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Compiling is most of the suite's time; unoptimised code is enough for its small arrays, and the
# older emitter of fusions makes it in half the time.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
    ]
)
os.environ["JAX_PLATFORMS"] = "cpu"

# Models alike share their compiled programs, in this process and in those it starts. Each worker
# has a folder of its own: files of this cache are not written at once, and a reader between would
# warn.
_compiled = tempfile.mkdtemp(prefix="compiled-")
atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def shared() -> Path:
    """The folder of real data sets and models beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED.name}/ beside the checkout")
    return SHARED
