"""The peers that we are measured and tested against."""

import transformers

from config import LlamaConfig


def transformers_config(config: LlamaConfig, **more: object) -> transformers.LlamaConfig:
    """The same shape in transformers' words, with RMSNorm and causal attention as it has them."""
    return transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        intermediate_size=config.hidden_dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        max_position_embeddings=config.max_seq_len,
        rms_norm_eps=config.layer_norm_eps,
        rope_theta=config.rope_theta,
        tie_word_embeddings=config.tie_word_embeddings,
        **more,
    )
