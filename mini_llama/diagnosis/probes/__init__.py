"""What is asked of each component: small fixed inputs, and what comes back.

The same is asked of a student's modules, in a limited process (worker.py), and of our own and their
variants, in this one; so nothing here says what is right, and nothing of the project is imported
but the files of this folder: `llama` or `config` means the modules that are examined. Wherever one
component uses another, a known function stands in for the latter, so that a fault shows in one
place only.

Of our own modules the probes call the plain path, which a student's have as well, and none of the
faster ones that stand beside it:

    rope           apply_rotary_emb
    norm           LayerNorm or RMSNorm, called
    attention      compute_query_key_value_scores, and Attention called with x alone
    feed_forward   FeedForward, called
    layer          LlamaLayer, called with x alone
    generate       Llama.generate of a model in float64, where no faster decoder takes the place of
                   the model's own forward pass; the logits are a table's that stands in for it
    lora           LoRALayer, apply_lora, merge_lora_weights
    optimizer      AdamW.step
    classifier     Llama called with tokens and targets; LlamaEmbeddingClassifier, called

How these multiply (oneDNN's product in Linear, PyTorch's attention and layer norm, complex numbers
in rope) makes no difference beyond float32's rounding: mistakes/ has each formula written out, and
tests/diagnosis/test_mistakes.py holds ours to it within comparison.EXACT.

Shapes: B batch, T positions, H heads, D head_dim, C width, V vocabulary.
"""
