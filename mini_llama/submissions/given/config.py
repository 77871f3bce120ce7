"""The model's shape, from a checkpoint's model_args."""

from typing import Any


class PretrainedConfig:
    """Settings with arbitrary names."""

    model_type = ""

    def __init__(self, **settings: Any) -> None:
        vars(self).update(settings)


class LlamaConfig(PretrainedConfig):
    """The course's names and defaults; any other setting is stored too."""

    model_type = "llama"

    def __init__(self, **settings: Any) -> None:
        self.vocab_size = 32000
        self.dim = 512
        self.dropout = 0.0
        self.n_layers = 8
        self.n_heads = 8
        self.n_kv_heads: int | None = 8
        self.max_seq_len = 1024
        self.layer_norm_eps = 1e-5
        self.multiple_of = 32
        self.hidden_dim: int | None = None
        self.position_embedding_type = "rotary"
        self.use_cache = True
        super().__init__(**settings)
