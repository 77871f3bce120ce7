"""Building blocks of the network: linear layers, quantized ones, their loss, the KV cache."""
