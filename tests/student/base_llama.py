from torch import dtype

from config import LlamaConfig
from utils import *


class LlamaPreTrainedModel(nn.Module):
    config_class = LlamaConfig
    base_model_prefix = "llama"

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.n_layers = config.n_layers

    @property
    def dtype(self) -> dtype:
        return get_parameter_dtype(self)
