"""The demonstration: post-training of the bundled model, with a judge that reads it exactly."""
