"""The files that third parties own: weights, tokenizer, data, the checks' references."""
