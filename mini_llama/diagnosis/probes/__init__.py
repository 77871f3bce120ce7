"""Run each component on small fixed inputs and collect its outputs.

The same probes run on a student's modules, in a process with limits (worker.py), and on our own
modules and their variants, in this process. So nothing here says what is correct, and only files of
this folder are imported from the project: `llama` or `config` is the module under test. If one
component uses another, a known function replaces the other, so that a mistake shows up in one
component only.

In our own modules the probes call the plain path, which a student's modules have as well, and none
of the faster ones:

    rope           apply_rotary_emb
    norm           LayerNorm or RMSNorm, called
    attention      compute_query_key_value_scores, and Attention called with only x
    feed_forward   FeedForward, called
    layer          LlamaLayer, called with only x
    generate       Llama.generate of a float64 model, which uses no faster decoder; a table replaces
                   the model's forward pass
    lora           LoRALayer, apply_lora, merge_lora_weights
    optimizer      AdamW.step
    classifier     Llama called with tokens and targets; LlamaEmbeddingClassifier, called

How these compute (oneDNN in Linear, PyTorch's attention and layer norm, complex numbers in rope)
makes no difference beyond float32 rounding: mistakes/ has each formula written out, and
tests/diagnosis/test_mistakes.py checks that ours agree with it within comparison.EXACT.

Shapes: B batch, T positions, H heads, D head_dim, C width, V vocabulary.
"""
