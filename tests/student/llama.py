import math

import torch
from torch import nn

from base_llama import LlamaConfig, LlamaPreTrainedModel
from rope import apply_rotary_emb
from utils import *


class LayerNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def _norm(self, x):
        mean = torch.mean(x, -1, keepdim=True)
        var = torch.mean((x - mean) ** 2, -1, keepdim=True)
        return (x - mean) / torch.sqrt(var + self.eps)

    def forward(self, x):
        return self.weight * self._norm(x.float()).type_as(x) + self.bias


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_heads = config.n_heads
        self.n_kv_heads = config.n_kv_heads or config.n_heads
        self.copies = self.n_heads // self.n_kv_heads
        self.head_dim = config.dim // config.n_heads
        self.max_seq_len = config.max_seq_len
        self.compute_query = nn.Linear(config.dim, config.dim, bias=False)
        self.compute_key = nn.Linear(config.dim, self.n_kv_heads * self.head_dim, bias=False)
        self.compute_value = nn.Linear(config.dim, self.n_kv_heads * self.head_dim, bias=False)
        self.compute_output = nn.Linear(config.dim, config.dim, bias=False)
        self.attn_dropout = nn.Dropout(config.dropout)
        self.resid_dropout = nn.Dropout(config.dropout)

    def compute_query_key_value_scores(self, query, key, value):
        weights = torch.matmul(query, key.transpose(2, 3)) * (1.0 / math.sqrt(self.head_dim))
        weights = self.attn_dropout(torch.softmax(weights, dim=-1))
        return torch.matmul(weights, value)

    def forward(self, x):
        batch, seq_len, dim = x.shape
        query = self.compute_query(x).reshape(batch, seq_len, self.n_heads, self.head_dim)
        key = self.compute_key(x).reshape(batch, seq_len, self.n_kv_heads, self.head_dim)
        value = self.compute_value(x).reshape(batch, seq_len, self.n_kv_heads, self.head_dim)
        query, key = apply_rotary_emb(query, key, self.head_dim, self.max_seq_len)
        key = torch.repeat_interleave(key, self.copies, dim=2)
        value = torch.repeat_interleave(value, self.copies, dim=2)
        heads = [t.transpose(1, 2) for t in (query, key, value)]
        mixed = self.compute_query_key_value_scores(*heads).transpose(1, 2)
        return self.resid_dropout(self.compute_output(mixed.reshape(batch, seq_len, dim)))


class FeedForward(nn.Module):
    def __init__(self, dim, hidden_dim, multiple_of, dropout):
        super().__init__()
        if hidden_dim is None:
            hidden_dim = math.ceil(int(2 * 4 * dim / 3) / multiple_of) * multiple_of
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        gate = self.w1(x)
        return self.dropout(self.w2(gate * torch.sigmoid(gate) * self.w3(x)))


class LlamaLayer(nn.Module):
    def __init__(self, layer_id, config):
        super().__init__()
        self.layer_id = layer_id
        self.attention = Attention(config)
        self.feed_forward = FeedForward(
            config.dim, config.hidden_dim, config.multiple_of, config.dropout
        )
        self.attention_norm = LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.ffn_norm = LayerNorm(config.dim, eps=config.layer_norm_eps)

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList([LlamaLayer(i, config) for i in range(config.n_layers)])
        self.norm = LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.tok_embeddings.weight = self.output.weight

    def forward(self, tokens, targets=None):
        h = self.dropout(self.tok_embeddings(tokens))
        for layer in self.layers:
            h = layer(h)
        h = self.norm(h)
        return self.output(h if targets is not None else h[:, [-1], :]), h

    @torch.inference_mode()
    def generate(self, idx, max_new_tokens, temperature=1.0, epsilon=0.05):
        for _ in range(max_new_tokens):
            logits, _ = self(idx[:, -self.config.max_seq_len :])
            logits = logits[:, -1, :]
            if temperature == 0.0:
                chosen = torch.argmax(logits, dim=-1, keepdim=True)
            else:
                probs = torch.softmax(logits / temperature, dim=-1)
                kept = probs * (probs >= epsilon)
                total = kept.sum(dim=-1, keepdim=True)
                best = nn.functional.one_hot(probs.argmax(-1), probs.shape[-1]).float()
                kept = torch.where(total > 0, kept / total, best)
                chosen = torch.multinomial(kept, num_samples=1)
            idx = torch.cat((idx, chosen), dim=1)
        return idx


def load_pretrained(checkpoint):
    saved = torch.load(checkpoint, weights_only=True)
    model = Llama(LlamaConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"], strict=False)
    return model
