"""A student's folder in the course's own form, written without a look at our modules: test data."""

import json
import os

from utils import CONFIG_NAME, cached_path, is_remote_url


class PretrainedConfig(object):
    def __init__(self, **kwargs):
        self.num_labels = kwargs.pop("num_labels", 2)
        self.pad_token_id = kwargs.pop("pad_token_id", None)
        for key, value in kwargs.items():
            setattr(self, key, value)

    @classmethod
    def from_pretrained(cls, name, **kwargs):
        place = name if is_remote_url(name) else os.path.join(name, CONFIG_NAME)
        with open(cached_path(place), encoding="utf-8") as file:
            return cls(**json.load(file), **kwargs)


class LlamaConfig(PretrainedConfig):
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
        super().__init__(**others)
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
