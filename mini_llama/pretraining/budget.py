"""How many steps a budget of tokens or of operations buys."""

import dataclasses

from config import LlamaConfig
from mini_llama.checkpoints.sizes import count_parameters
from mini_llama.pretraining.options import PretrainOptions


def with_budget(options: PretrainOptions, config: LlamaConfig) -> PretrainOptions:
    """The options with the steps that --tokens_per_parameter or --flops asks for, rounded up.

    Operations are 6 for each parameter and token (Kaplan et al. 2020, section 2.1), as in Spring
    2026's capacity; 20 tokens a parameter are about the best use of them for a large model
    (Hoffmann et al. 2022, table 3). Raises UsageError for more steps than --steps may be.
    """
    parameters = count_parameters(config)
    if options.tokens_per_parameter is not None:
        tokens = options.tokens_per_parameter * parameters
    elif options.flops is not None:
        tokens = options.flops / (6 * parameters)
    else:
        return options
    steps = max(1, -int(-tokens // (options.batch_size * options.context)))
    return dataclasses.replace(options, steps=steps, tokens_per_parameter=None, flops=None)
