"""The names of a Llama's tensors in GGUF files."""

from mini_llama.checkpoints.record import layer_tensors

NAMES = {
    "tok_embeddings.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "output.weight": "output.weight",
}
LAYER_NAMES = {
    "attention_norm": "attn_norm",
    "attention.compute_query": "attn_q",
    "attention.compute_key": "attn_k",
    "attention.compute_value": "attn_v",
    "attention.compute_output": "attn_output",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}


def their_name(name: str) -> str:
    """Our tensor's name → theirs."""
    if name in NAMES:
        return NAMES[name]
    _, number, rest = name.split(".", 2)
    part, _, leaf = rest.rpartition(".")
    return f"blk.{number}.{LAYER_NAMES[part]}.{leaf}"


def our_names(n_layers: int) -> dict[str, str]:
    """Their names → ours, of every tensor of a model."""
    return {their_name(name): name for name in (*NAMES, *layer_tensors(n_layers, LAYER_NAMES))}
