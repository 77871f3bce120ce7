import torch


def apply_rotary_emb(query, key, head_dim, max_seq_len, theta=10000.0):
    seq_len = query.shape[1]
    frequency = theta ** (-torch.arange(0, head_dim, 2, device=query.device).float() / head_dim)
    position = torch.arange(seq_len, device=query.device).float()
    angle = position[:, None] * frequency[None, :]
    cos = angle.cos()[None, :, None, :]
    sin = angle.sin()[None, :, None, :]

    def turn(x):
        real = x.float()[..., 0::2]
        imaginary = x.float()[..., 1::2]
        out = torch.empty_like(x, dtype=torch.float32)
        out[..., 0::2] = real * cos - imaginary * sin
        out[..., 1::2] = real * sin + imaginary * cos
        return out

    return turn(query), turn(key)
