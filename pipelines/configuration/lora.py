"""Low-rank adapters: the keys `midtrain.lora.*` and `grpo.lora.*`."""

from dataclasses import dataclass, field
from importlib.util import find_spec

from pipelines.errors import UserError, require


@dataclass
class LoRAConfig:
    """Adapters that a stage trains in place of all weights (Hu et al., arXiv 2106.09685). All defaults are ours."""

    rank: int = 0
    """Rank of the adapters; 0: none, all weights are trained."""
    alpha: float | None = None
    """An adapter's output is multiplied by alpha / rank; null: twice the rank."""
    targets: list[str] = field(default_factory=list)
    """Names of the layers that have adapters, such as `q_proj`; empty: all linear layers but the output layer."""

    @property
    def scale(self) -> float:
        """Alpha, whether it is set or not."""
        return 2.0 * self.rank if self.alpha is None else self.alpha

    def check(self, key: str) -> None:
        """Raise a `UserError` for an impossible value; `key` is the key of the adapters in the configuration."""
        require(self.rank >= 0, f"{key}.rank", self.rank, fix="it must be 0 or more")
        for name, value in (("alpha", self.alpha), ("targets", self.targets)):
            fix = f"without adapters it has no effect; set {key}.rank, or leave it out"
            require(self.rank > 0 or not value, f"{key}.{name}", value, fix=fix)
        require(self.alpha is None or self.alpha > 0, f"{key}.alpha", self.alpha, fix="it must be above 0, or null")
        fix = "an adapter on the output layer or the embedding is not supported; name linear layers inside"
        require(not {"lm_head", "embed_tokens"} & set(self.targets), f"{key}.targets", self.targets, fix=fix)
        if self.rank and find_spec("peft") is None:
            raise UserError(f"{key}.rank={self.rank}: adapters need peft: pip install 'shaping[lora]'")
