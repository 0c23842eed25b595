"""What the process that programs are forked from gets of its parent."""

from pathlib import Path

import pytest

from pipelines.verifiers import code


def test_the_process_that_programs_are_forked_from_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    nursery = code.Nursery([*code.COMMAND, "none"])
    try:
        content = Path(f"/proc/{nursery._process.pid}/environ").read_bytes()
    finally:
        nursery.close()
    names = {variable.partition(b"=")[0].decode() for variable in content.split(b"\0") if variable}
    ours = {"PYTHONPATH", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "OPENBLAS_NUM_THREADS", "LANG"}
    assert ours <= names <= ours | {"LD_LIBRARY_PATH", "PATH"}
