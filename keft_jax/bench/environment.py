"""What a figure was measured with."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

FLAGS = ("XLA_", "JAX_", "LIBTPU_", "TPU_", "OMP_", "MKL_", "CUDA_", "NVIDIA_TF32", "NCCL_")
"""Beginnings of variables that change what is compiled or how it runs."""


def environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu_model(),
        "flags": {k: v for k, v in sorted(os.environ.items()) if k.startswith(FLAGS)},
        "matmul_precision": getattr(jax.config, "jax_default_matmul_precision", None) or "default",
    }


def device(mesh: Mesh) -> dict[str, Any]:
    first = mesh.devices.flat[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "version": first.client.platform_version,
        "count": mesh.size,
        "mesh": dict(mesh.shape),
        "cores": cores,
    }


def cpu_model() -> str:
    """As Linux names it; elsewhere as Python does."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_rss() -> int:
    """Bytes, of this process so far; with several models, of all."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
