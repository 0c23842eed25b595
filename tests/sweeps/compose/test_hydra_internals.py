"""Hydra's private parts are as `sweeps.compose.hydra_internals` expects them."""

from sweeps.compose.cells import composed
from sweeps.compose.hydra_internals import flag_names, flags_parser


def test_hydras_flags_are_known() -> None:
    parser = flags_parser()
    assert {"--cfg", "--help", "--hydra-help", "--info", "--multirun", "--resolve", "--run"} <= set(flag_names(parser))
    flags, unknown = parser.parse_known_args(["--cfg=job", "seed=1", "--unknown"])
    assert (flags.cfg, flags.run, flags.resolve, flags.shell_completion) == ("job", False, False, False)
    assert flags.overrides == ["seed=1"]
    assert unknown == ["--unknown"]


def test_hydra_applies_overrides_by_our_function() -> None:
    """Hydra itself would merge the mapping."""
    ((_, config),) = composed(["pretrain.mixture={order:1}"])
    assert dict(config.pretrain.mixture) == {"order": 1.0}
