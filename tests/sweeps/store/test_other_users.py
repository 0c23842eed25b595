"""A store that several users share: what a group may do with each other's files, and sentences for the rest.

Each user is a forked process; root's permissions do not bind it, so these tests need root to become others.
"""

import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.configuration.data import DataConfig
from pipelines.data.corpus import prepare
from pipelines.errors import UserError
from pipelines.evaluation.benchmark_cache import BenchmarkCache
from pipelines.files import write_sealed
from pipelines.stage_context import Ranks
from sweeps.monitor.index import summaries
from sweeps.monitor.upkeep import faults
from sweeps.plan.graph import StageRun
from sweeps.store.stage_runs import Store, StoredRun

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")

GROUP, ANN, BEN = 4200, 4201, 4202


def as_user(user: int, work: Callable[[], object], *, umask: int) -> object:
    """What `work` returns in a process of another user of the group; raises the `UserError` that it raised."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([GROUP])
            os.setgid(GROUP)
            os.setuid(user)
            os.umask(umask)
            answer: object = work()
        except UserError as error:
            answer = error
        except BaseException:
            answer = AssertionError(traceback.format_exc())
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pickle.load(pipe)
    os.waitpid(child, 0)
    if isinstance(answer, Exception):
        raise answer
    return answer


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder of the group, as docs/sweeps.md says. Folders of pytest are closed to others."""
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        folder = Path(parent) / "store"
        folder.mkdir()
        os.chown(folder, 0, GROUP)
        folder.chmod(0o2775)
        yield folder


RUN = StageRun("pretrain", "0123456789abcdef", 1, {"seed": 1}, None, None, 1, {}, {})


def begin(root: Path) -> StoredRun:
    """What an interrupted worker leaves: a spec, a state, a lease, and a folder of work with a trainer state."""
    run = Store.create(root).run(RUN.stage, RUN.signature)
    lease = run.claim()
    assert lease is not None
    (lease.work / "resume").mkdir()
    write_sealed(run.folder / "spec.json", RUN.spec)
    run.write_state("interrupted", attempts=[{"started": 1.0}])
    lease.release()
    return run


def go_on(root: Path) -> bool:
    """What the next worker does first."""
    run = Store.create(root).run(RUN.stage, RUN.signature)
    lease = run.claim()
    assert lease is not None
    (lease.work / "resume" / "x").touch()
    run.write_state("running", attempts=[*run.state["attempts"], {"started": 2.0}])
    lease.release()
    return len(run.reread().state["attempts"]) == 2 and len(summaries(Store.open(root))) == 1


def test_a_user_of_the_group_goes_on_where_another_stopped(shared: Path) -> None:
    as_user(ANN, lambda: begin(shared), umask=0o002)
    assert as_user(BEN, lambda: go_on(shared), umask=0o002) is True
    assert (shared / "index.json").stat().st_uid == BEN
    as_user(ANN, lambda: summaries(Store.open(shared)), umask=0o002)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_that_are_closed_to_the_group_are_named_with_their_owner(shared: Path, umask: int) -> None:
    as_user(ANN, lambda: begin(shared), umask=umask)
    named = rf"{shared}.*it cannot be (written|read) .Permission denied; .* belongs to user {ANN}"
    with pytest.raises(UserError, match=named):
        as_user(BEN, lambda: go_on(shared), umask=umask)


def test_what_cannot_be_read_is_a_fault_and_no_stage_run_that_is_missing(shared: Path) -> None:
    run = as_user(ANN, lambda: begin(shared), umask=0o002)
    assert isinstance(run, StoredRun)

    def seen() -> list[str]:
        (summary,) = summaries(Store.open(shared)).values()
        return [summary.status, *(fault.sentence for fault in faults(run.reread()) if not fault.is_broken)]

    for closed in (run.folder, run.folder / "spec.json"):
        mode = closed.stat().st_mode
        closed.chmod(0)
        status, sentence = as_user(BEN, seen, umask=0o002)  # type: ignore[misc]
        assert status == "corrupt"
        assert str(closed) in sentence
        assert "it cannot be read (Permission denied" in sentence
        closed.chmod(mode)


def test_cached_data_of_another_user_are_used_and_built(shared: Path) -> None:
    """The lock of who built it first belongs to that user."""
    config = DataConfig(text=[], tasks=["chain3"], tasks_per_family=20, vocab_size=290, top_k=4)
    assert as_user(ANN, lambda: prepare(config, shared / "cache").folder, umask=0o002)
    folder = as_user(BEN, lambda: prepare(config, shared / "cache").folder, umask=0o002)
    assert isinstance(folder, Path)
    (folder / "tokens.npz").write_bytes(b"changed")
    # It is built again under the lock of another user.
    assert as_user(BEN, lambda: prepare(config, shared / "cache").folder, umask=0o002) == folder


@pytest.mark.parametrize(("tasks", "is_refused"), [(1, False), (2, True)])
def test_an_evaluation_keeps_no_rows_where_another_user_closed_the_cache(
    shared: Path, tasks: int, is_refused: bool
) -> None:
    cache, ranges = shared / "cache" / "evaluations", [range(2)]

    def measure(ranks: Ranks) -> list[dict]:
        rows = lambda items: [{"item": item} for item in items]  # noqa: E731
        return BenchmarkCache(cache, {}, ranks).rows("b", {}, ranges=ranges, compute=rows)

    as_user(ANN, lambda: measure(Ranks()), umask=0o022)
    next(cache.glob("*/*.gz")).unlink()
    if is_refused:
        with pytest.raises(UserError, match="it cannot be written"):
            as_user(BEN, lambda: measure(Ranks(0, tasks)), umask=0o022)
    else:
        assert as_user(BEN, lambda: measure(Ranks(0, tasks)), umask=0o022) == [{"item": 0}, {"item": 1}]
