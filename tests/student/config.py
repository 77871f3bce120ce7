"""A student's folder in the course's own form, written without a look at our modules: test data."""


class LlamaConfig:
    def __init__(
        self,
        vocab_size=32000,
        dim=512,
        dropout=0.0,
        n_layers=8,
        n_heads=8,
        n_kv_heads=8,
        max_seq_len=1024,
        layer_norm_eps=1e-5,
        multiple_of=32,
        hidden_dim=None,
        **others,
    ):
        self.vocab_size = vocab_size
        self.dim = dim
        self.dropout = dropout
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads
        self.max_seq_len = max_seq_len
        self.layer_norm_eps = layer_norm_eps
        self.multiple_of = multiple_of
        self.hidden_dim = hidden_dim
        for name, value in others.items():
            setattr(self, name, value)
