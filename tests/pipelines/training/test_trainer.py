"""Lightning's trainer prints nothing, keeps no files, and leaves signals to the stage."""

import signal
from pathlib import Path
from typing import Any, cast

from pipelines.data.corpus import Corpus
from pipelines.training.trainer import trainer
from tests.pipelines.contexts import stage_context


def test_the_trainer_is_quiet_and_keeps_no_files(tmp_path: Path) -> None:
    with stage_context(cast(Corpus, None), tmp_path) as context:
        built: Any = trainer(context, max_steps=3)
    assert built.progress_bar_callback is None
    assert built.checkpoint_callback is None
    assert built.loggers == []
    assert not [callback for callback in built.callbacks if type(callback).__name__ == "ModelSummary"]
    assert built.max_steps == 3
    before = signal.getsignal(signal.SIGTERM)
    built._signal_connector.register_signal_handlers()
    assert signal.getsignal(signal.SIGTERM) is before
