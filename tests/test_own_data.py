"""docs/own-data.md: its commands, in order, in an empty folder, and what they print."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_command_of_the_page(tmp_path):
    page = (ROOT / "docs" / "own-data.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    script = "\n".join(f"echo '== {i}'\n{block}" for i, block in enumerate(blocks))
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    # The command of this checkout, whatever is installed.
    keft = f"#!/bin/sh\nexec {sys.executable} -c 'from keft_jax.cli import main; main()' \"$@\"\n"
    for name, text in (("keft", keft), ("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')):
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    env = os.environ | {
        "PATH": f"{bin_}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=work, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    _, built, made, doctor, used = re.split(r"^== \d\n", done.stdout, flags=re.MULTILINE)
    assert "entities" in built
    shown = re.search(r"^```\n(label .*?)^```", page, re.MULTILINE | re.DOTALL)
    assert shown and set(shown[1].splitlines()) <= set(made.splitlines()), made
    assert doctor.strip().splitlines()[-1].startswith("expect a gain: a linear model gains +")
    assert '"answer": ' in used and '"accuracy": ' in used and "report.html" in used
