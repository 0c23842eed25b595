"""What the process that programs are forked from gets of its parent."""

import io
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

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


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (socket.socket.close, "has ended: "),
        (lambda theirs: None, "does not answer: timed out"),
        (lambda theirs: theirs.shutdown(socket.SHUT_WR), "^No module named numpy$"),
    ],
)
def test_one_that_ends_or_does_not_answer_is_replaced(fault: Callable[[socket.socket], None], message: str) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(0.05)
    nursery, ended = object.__new__(code.Nursery), []
    errors = io.BytesIO(b"Traceback\nNo module named numpy\n")
    nursery._process = SimpleNamespace(kill=lambda: ended.append("killed"), stderr=errors)  # type: ignore[assignment]
    nursery._control, nursery.broken = ours, False
    with ours, theirs:
        fault(theirs)
        with pytest.raises(code.SandboxFailure, match=message):
            nursery.ask("fork")
    assert nursery.broken
    assert bool(ended) == message.startswith("^")
