"""The model's configuration as the course's config.py has it: plain attributes."""

from typing import Any


class PretrainedConfig:
    """Attributes by name, the number of labels among them."""

    def __init__(self, **others: Any) -> None:
        self.num_labels = others.pop("num_labels", 2)
        for name, value in others.items():
            setattr(self, name, value)


class LlamaConfig(PretrainedConfig):
    """The shape of a model; stories42M's by default."""

    model_type = "llama"

    def __init__(self, **fields: Any) -> None:
        shape: dict[str, Any] = dict(vocab_size=32000, dim=512, dropout=0.0, n_layers=8, n_heads=8)
        shape |= dict(n_kv_heads=8, max_seq_len=1024, layer_norm_eps=1e-5, multiple_of=32)
        shape |= dict(hidden_dim=None, position_embedding_type="rotary", use_cache=True)
        super().__init__(**(shape | fields))
