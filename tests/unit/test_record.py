"""The record that a job's node writes: what stage.sh puts there, and what is believed of it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from condorctl import job, paths
from condorctl.ledger import Job, Run, Stage, gpus, record

STAGE = Path(job.__file__).parents[1] / "stage.sh"
SHA = "a" * 64


def stage(*words: str, **environment: str) -> int:
    command = ["/bin/sh", str(STAGE), *words]
    return subprocess.run(command, env=environment or None, timeout=30).returncode


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_every_file_of_every_output_is_recorded_whatever_it_is_called(project: Path) -> None:
    names = ["a b.txt", "back\\slash", "tab\there", "é", "-dash", "*", "$HOME"]
    script = "".join(f"printf '%s' '{name}' >'{name}'; " for name in names if name != "-dash")
    script += "printf %s -dash >./-dash; rm d; mkdir -p d/deep; printf 1 >'d/deep/line\nbreak'"
    words = [f"./{name}" if name.startswith("-") else name for name in names]
    assert stage(*words, "d", "--", "sh", "-c", script) == 0
    found = record.load(Path(paths.JOB_RECORD))
    assert found.exit_code == 0
    assert found.machine["start"] <= found.machine["end"]
    assert {"host", "kernel"} <= set(found.machine)
    wanted = {name: (len(name.encode()), sha256(name)) for name in names}
    # Of the name with a line break sha256sum's escaped form is read; its size is not known.
    assert found.files == wanted


@pytest.mark.parametrize(("code", "told"), [(5, 3), (3, 3), (4, 4), (0, 0)])
def test_one_final_code_stands_for_all_and_the_record_has_the_real_one(
    project: Path, code: int, told: int
) -> None:
    assert stage("--final", "3,5", "out", "--", "sh", "-c", f"echo x >out; exit {code}") == told
    assert record.load(Path(paths.JOB_RECORD)).exit_code == code


def test_a_node_with_no_more_than_a_shell_runs_the_job_all_the_same(
    project: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    for tool in ("sh", "mkdir"):
        (bare / tool).symlink_to(shutil.which(tool) or "")
    words = ["out", "d/x", "--", "sh", "-c", "echo x >out; echo y >d/x"]
    assert stage(*words, PATH=str(bare)) == 0
    found = record.load(Path(paths.JOB_RECORD))
    assert (found.exit_code, found.files) == (0, {})


def test_a_node_that_cannot_unpack_the_environment_does_not_run_the_command(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tools = project / "code" / "condorctl"
    tools.mkdir(parents=True)
    shutil.copy2(STAGE.with_name("venv.sh"), tools)
    Path("env.pex").write_text("no environment")
    assert stage("--venv", "env.pex", "out", "--", "sh", "-c", "echo ran >out") == 72
    assert not Path("out").read_text()
    assert "this node cannot unpack the Python environment env.pex" in capfd.readouterr().err
    # One that an earlier start of the job has unpacked is there.
    python = Path("_condorctl_venv/bin/python")
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text("#!/bin/sh\necho its own >out\n")
    python.chmod(0o755)
    assert stage("--venv", "env.pex", "out", "--", "python") == 0
    assert Path("out").read_text() == "its own\n"


def test_the_gpus_are_those_that_the_job_may_use(project: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    # The form is that of nvidia-smi's --query-gpu; no GPU is needed to read it.
    (tools / "nvidia-smi").write_text(
        "#!/bin/sh\n"
        "echo '0, GPU-11aa, NVIDIA H200, 143771, 570.86'\n"
        "echo '1, GPU-22bb, NVIDIA H200, 143771, 570.86'\n"
    )
    (tools / "nvidia-smi").chmod(0o755)
    path = f"{tools}:/usr/bin:/bin"
    gpu = {"name": "NVIDIA H200", "memory_mb": 143771}
    for devices, count in [("GPU-22bb", 1), ("GPU-22", 1), ("0,1", 2), ("10000", 0), ("", 0)]:
        assert stage("--", "true", PATH=path, CUDA_VISIBLE_DEVICES=devices) == 0
        machine = record.load(Path(paths.JOB_RECORD)).machine
        assert machine.get("gpus", []) == [gpu] * count
        assert machine.get("driver") == ("570.86" if count else None)


@pytest.mark.parametrize(
    "text",
    [
        "", "\0\xff", "something else\n", "condorctl-job 1",
        "condorctl-job 1\nexit\nstart x\nend -1\ngpu\ngpu ,,,,\ngpu a,b\nhost\n\nfiles\n\n",
        f"condorctl-job 1\nexit {'9' * 400}\nfiles\nbytes {'9' * 400} x\n{SHA}  x\n",
        f"condorctl-job 1\nfiles\n{SHA}  ../../etc/passwd\nbytes 1 ../../etc/passwd\n",
        f"condorctl-job 1\nfiles\n{SHA}  /etc/passwd\nbytes 1 /etc/passwd\n",
        f"condorctl-job 1\nfiles\n{SHA[1:]}  x\nbytes 1 x\n",
    ],
)  # fmt: skip
def test_what_has_not_the_form_is_passed_over(project: Path, text: str) -> None:
    Path("1.job").write_bytes(text.encode("latin-1"))
    found = record.load(Path("1.job"))
    assert (found.files, found.exit_code, found.machine.get("gpus")) == ({}, None, None)


def test_an_exit_code_is_believed_only_where_one_stands_for_others(project: Path) -> None:
    (project / "s").mkdir()
    run = Run(name="p-1", kind="pipeline", folder=str(project))
    for codes, exit_code, written, expected in [
        ([3, 5], 3, "5", 5), ([3, 5], 3, "0", 3), ([3, 5], 1, "5", 1), ([], 3, "5", 3),
    ]:  # fmt: skip
        one = Stage(name="s", run=run, final_exit_codes=codes)
        ended = Job(stage=one, cluster=7, proc=0, exit_code=exit_code)
        (project / "s" / "7.job").write_text(
            f"condorctl-job 1\nhost h\nexit {written}\nfiles\n{SHA}  x\nbytes 3 x\n"
        )
        record.read(ended)
        record.read(ended)
        assert ended.exit_code == expected
        assert ended.machine == {"host": "h"}
        assert [(o.path, o.bytes, o.sha256) for o in ended.written] == [("x", 3, SHA)]


def test_htcondors_word_on_gpus_is_joined_with_the_jobs_own(project: Path) -> None:
    slot = {
        "Cpus": 1,
        "AvailableGPUs": ["x"],
        "GPUs_GPU_a": {"DeviceName": "A100", "GlobalMemoryMb": 40000, "Capability": 8.0,
                       "DriverVersion": 12.2},
        "GPUs_GPU_b": {"devicename": "A100", "GLOBALMEMORYMB": "much"},
        "GPUs_Capability": 8.0,
    }  # fmt: skip
    devices = gpus.given(slot)
    assert devices == [
        {"name": "A100", "memory_mb": 40000, "capability": 8.0, "cuda": 12.2},
        {"name": "A100"},
    ]
    seen = {"driver": "535.1", "gpus": [{"name": "NVIDIA A100", "memory_mb": 40960}] * 2}
    both = gpus.joined(seen, {"gpus": devices})
    assert both["gpus"][0] == {**devices[0], "name": "NVIDIA A100", "memory_mb": 40960}
    assert gpus.words(both)[::2] == [
        "NVIDIA A100 (40960 MB, capability 8.0, CUDA 12.2)", "driver 535.1"
    ]  # fmt: skip
    assert gpus.joined({"host": "n"}, {}) == {"host": "n"}


def test_the_use_of_gpus_is_a_share_and_a_hint_when_it_is_small() -> None:
    # The names as HTCondor's own events spell them.
    told = gpus.used({"GPUsUsage": 0.9, "GpusMemoryUsage": 2048}, 2)
    assert told == {"gpu_busy": 0.45, "gpu_memory_mb": 2048}
    assert gpus.used({"GPUsUsage": 0.9}, 0) == gpus.used({}, 1) == {}
    assert gpus.use_in_words(told) == "GPU 45 % busy, at most 2.0 GB of its memory used"
    assert gpus.use_in_words(None) is gpus.hint(None) is gpus.hint(told) is None
    assert "the GPU waited 80 % of the time" in str(gpus.hint({"gpu_busy": 0.2}))


def test_gpus_are_looked_at_while_a_command_runs(project: Path, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho '0, GPU-aaaaaa, 80, 100'\necho '1, GPU-bbbbbb, 20, 300'\n"
        "echo '2, GPU-cccccc, [N/A], 900'\n"
    )
    program.chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    expected = {"0,1,2": "3 50 300", "GPU-bbbb": "3 20 300", "1": "3 20 300"}
    watching = [
        subprocess.Popen(
            ["timeout", "3.9", "/bin/sh", str(STAGE.with_name("gpus.sh")), devices, devices],
            env={"PATH": path},
        )
        for devices in expected
    ]
    for one, (devices, line) in zip(watching, expected.items(), strict=True):
        one.wait()
        assert Path(devices).read_text() == f"{line}\n"
    Path("_condorctl_job").write_text("condorctl-job 1\nexit 0\nuse 3 50 300\nfiles\n")
    assert record.load(Path("_condorctl_job")).use == {"gpu_busy": 0.5, "gpu_memory_mb": 300}
