"""Probes of Llama.forward and of the classifier on top of its hidden states.

Legend of shapes: B batch, T positions, C width, V vocabulary.
"""

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from mini_llama.diagnosis.probes.common import (
    Cases,
    MissingError,
    Modules,
    ResultError,
    Settings,
    Values,
    fill,
    find,
    flags,
    make_config,
    replaced,
    share,
    stand_in,
)

N_LABELS = 3
PAD = 3  # the padding id of the assignment's tokenizer
PADDED = "padded rows"
# Options of run_llama.py that a classifier may read from its configuration.
OPTIONS = dict(
    num_labels=N_LABELS,
    pretrained_model_path=__file__,  # any existing file
    option="finetune",
    hidden_size=32,
    lora_rank=4,
    lora_alpha=1.0,
    use_gpu=False,
    batch_size=2,
    max_sentence_len=None,
    epochs=5,
    lr=2e-5,
    seed=1337,
    data_dir=".",
    label_names=["a", "b", "c"],
)


class Backbone(nn.Module):
    """A replacement for a pretrained Llama if the student's fails: an embedding of the tokens."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(8, 32)
        self.layers = nn.ModuleList([nn.Identity()])
        self.norm = nn.Identity()
        self.output = nn.Linear(32, 8, bias=False)


def known_network(llama: Any) -> Any:
    """Replace layers and norm by functions, and fill the embeddings with known numbers."""
    fill(find(llama, "tok_embeddings"), "weight")
    fill(find(llama, "output"), "weight")
    for layer in find(llama, "layers"):
        stand_in(layer, lambda x: 3 * x.flip(-1) + 0.1)  # both signs
    stand_in(find(llama, "norm"), lambda x: x.tanh())
    return llama.eval()


def make_backbone(modules: Modules, config: Any) -> nn.Module:
    """A model with the student's classes, known parts and a correct forward pass."""
    try:
        llama = known_network(find(modules.llama, "Llama")(config))
    except Exception:
        llama = known_network(Backbone(config))
    llama.config = getattr(llama, "config", config)

    def hidden_states(tokens: torch.Tensor) -> torch.Tensor:
        hidden = llama.tok_embeddings(tokens)
        for layer in llama.layers:
            hidden = layer(hidden)
        return llama.norm(hidden)

    def forward(tokens: torch.Tensor, targets: object = None, **_: object) -> tuple:
        """Logits (B, 1, V), or (B, T, V) with targets, and hidden states (B, T, C)."""
        hidden = hidden_states(tokens)
        return llama.output(hidden[:, -1:] if targets is None else hidden), hidden

    llama.forward = forward
    # our classifier calls this: (B, 1, C)
    llama.last_hidden_state = lambda tokens, *_: hidden_states(tokens)[:, -1:]
    return llama


def probe_classifier(modules: Modules, settings: Settings) -> Cases:
    config = make_config(modules, settings)
    tokens = torch.tensor([[1, 2, 6, 4, 5], [6, 5, 7, 2, 7]])

    def classified(tokens: torch.Tensor, name: str) -> Values:
        model = make_classifier(modules, config, hidden_dropout_prob=0.0).eval()
        head = head_of(model)
        fill(head, *(name for name, _ in head.named_parameters()))
        return {name: model(tokens)}

    def dropout() -> Values:
        model = make_classifier(modules, config, hidden_dropout_prob=0.5)
        inputs: list[torch.Tensor] = []
        head_of(model).register_forward_hook(lambda _module, args, _output: inputs.append(args[0]))
        values = {}
        for mode, when in (("train", "in training"), ("eval", "in evaluation")):
            getattr(model, mode)()(tokens.repeat(50, 1))
            values[f"share of zeros {when}"] = share(inputs[-1] == 0)
        with torch.no_grad():
            for parameter in head_of(model).parameters():  # equal rows, unless some are dropped
                parameter.zero_()
                if parameter.ndim == 1:
                    parameter.copy_(torch.arange(1.0, N_LABELS + 1))
        output = model.train()(tokens.repeat(50, 1))
        return values | {"equal rows in training": flags((output == output[:1]).all())}

    within = torch.tensor([[1, 0, 6, 4, 5], [6, 5, 0, 2, 7]])
    at_the_end = torch.tensor([[1, 2, 6, 4, 0], [6, 5, 7, 0, 0]])
    padded = torch.tensor([[1, 2, 6, 4, 5], [6, 5, PAD, PAD, PAD]])
    inputs_of = {
        "log-probabilities": tokens,
        "an id of 0 within the row": within,
        "ids of 0 at its end": at_the_end,
        PADDED: padded,
    }
    cases: Cases = {"Llama.forward": lambda: probe_network(modules, config, tokens)}
    cases |= {name: partial(classified, ids, name) for name, ids in inputs_of.items()}
    return cases | {"dropout": dropout}


def probe_network(modules: Modules, config: Any, tokens: torch.Tensor) -> Values:
    """Outputs of Llama.forward, with layers and norm replaced by functions."""
    llama = known_network(find(modules.llama, "Llama")(config))

    def pair(*arguments: torch.Tensor, **options: torch.Tensor) -> Any:
        result = llama(*arguments, **options)
        if not (isinstance(result, (tuple, list)) and len(result) == 2):
            kind = type(result).__name__
            raise ResultError(f"Llama.forward returned {kind}, not (logits, hidden_states)")
        return result

    logits, hidden = pair(tokens)
    all_logits, _ = pair(tokens, targets=tokens)
    return {"logits": logits, "logits with targets": all_logits, "hidden states": hidden}


def make_classifier(modules: Modules, config: Any, **options: object) -> nn.Module:
    load = {"load_pretrained": lambda *_, **__: make_backbone(modules, config)}
    with replaced(modules.classifier, **load), replaced(modules.llama, **load):
        classifier = find(modules.classifier, "LlamaEmbeddingClassifier")
        return classifier(SimpleNamespace(**OPTIONS, **options))


def head_of(model: nn.Module) -> nn.Linear:
    """The linear layer with one output for each label. Raises MissingError."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features == N_LABELS:
            return module
    raise MissingError(
        f"a linear layer from the hidden state to {N_LABELS} labels in classifier.py"
    )
