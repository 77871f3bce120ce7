"""Text from a model: sampling, generation, fast decoding, chat."""
