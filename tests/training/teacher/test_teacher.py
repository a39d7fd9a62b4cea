import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from training.teacher.teacher import LocalTeacherConfig, local_folder


def test_a_local_teacher_needs_only_its_folder():
    config = LocalTeacherConfig(model="/models/teacher")
    assert config.model_dump() == {
        "kind": "local",
        "model": "/models/teacher",
        "dtype": "float32",
        "batch_tokens": 8192,
        "chunk_tokens": 128,
    }
    assert local_folder(config) == Path("/models/teacher")


def test_a_folder_may_begin_at_the_users_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_folder(LocalTeacherConfig(model="~/models/teacher")) == tmp_path / "models" / "teacher"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, r"model\n\s*Field required"),
        ({"model": "m", "dtype": "float16"}, "dtype\n.*'float32' or 'bfloat16'"),
        ({"model": "m", "batch_tokens": 0}, "batch_tokens\n.*greater than or equal to 1"),
        ({"model": "m", "chunk_tokens": 0}, "chunk_tokens\n.*greater than or equal to 1"),
        ({"model": "m", "batch_token": 1}, "unknown key 'batch_token'; did you mean 'batch_tokens'"),
    ],
)
def test_values_that_no_teacher_takes_are_refused(values, said):
    with pytest.raises(ValidationError, match=said):
        LocalTeacherConfig(**values)


def test_a_process_that_only_describes_a_teacher_loads_no_torch():
    program = "import sys, training.teacher.teacher; sys.exit('torch' in sys.modules)"
    project = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", program], cwd=project, check=False).returncode == 0
