"""A student's folder in the form of each course, made from the modules of tests/student.

The starter files are in the courses' form, including imports that nothing uses.
"""

import re

from config import EDITIONS
from tests.helpers import ROOT

COURSES = [edition for edition in EDITIONS if edition != "llama2"]
MODULES = {p.name: p.read_text(encoding="utf-8") for p in (ROOT / "tests/student").glob("*.py")}
NOT_INSTALLED = ("requests_of_no_one", "filelock_of_no_one", "importlib_metadata")

UTILS = """
import importlib_metadata
import os
from typing import List, Optional, Union

import requests_of_no_one
import torch
from filelock_of_no_one import FileLock
from requests_of_no_one.exceptions import HTTPError
from torch import Tensor, nn

_torch_version = importlib_metadata.version("torch")
CONFIG_NAME = "config.json"

def is_remote_url(place):
    return "://" in place

def cached_path(place):
    return place

def fetch(url):
    with FileLock(url + ".lock"):
        try:
            return requests_of_no_one.get(url)
        except HTTPError:
            return None

def get_parameter_dtype(parameter: Union[nn.Module]):
    return next(parameter.parameters()).dtype
"""
BASE_LLAMA = """
from config import LlamaConfig
from utils import *

class LlamaPreTrainedModel(nn.Module):
    config_class = LlamaConfig

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config

    @property
    def dtype(self):
        return get_parameter_dtype(self)
"""
TOKENIZER = """
import os
from typing import List
from sentencepiece import SentencePieceProcessor

class Tokenizer:
    def __init__(self, max_len=None, tokenizer_model=None):
        path = tokenizer_model if tokenizer_model else "tokenizer.model"
        assert os.path.isfile(path), path
        self.sp_model = SentencePieceProcessor(model_file=path)
        self.bos_id = self.sp_model.bos_id()

    def encode(self, s: str, bos: bool, eos: bool) -> List[int]:
        return [self.bos_id] * bos + self.sp_model.encode(s)

    def decode(self, t: List[int]) -> str:
        return self.sp_model.decode(t)
"""
RUN_LLAMA = """
import argparse, random
import numpy as np
import torch
from sklearn.metrics import f1_score
from llama import Llama, load_pretrained
from tokenizer import Tokenizer

def generate_sentence(args, prefix, outfile, max_new_tokens=75, temperature=0.0):
    with torch.no_grad():
        device = torch.device("cuda") if args.use_gpu else torch.device("cpu")
        llama = load_pretrained(args.pretrained_model_path).to(device)
        enc = Tokenizer(args.max_sentence_len)
        start_ids = enc.encode(prefix, bos=True, eos=False)
        x = torch.tensor(start_ids, dtype=torch.long, device=device)[None, ...]
        y = llama.generate(x, max_new_tokens, temperature=temperature)
        with open(outfile, "w") as writer:
            writer.write(enc.decode(y[0].tolist()))

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--option", choices=("generate", "prompt", "finetune"))
    parser.add_argument("--pretrained-model-path", default="stories42M.pt")
    parser.add_argument("--max_sentence_len", type=int, default=None)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--use_gpu", action="store_true")
    low, high = "generated-sentence-temp-0.txt", "generated-sentence-temp-1.txt"
    parser.add_argument("--generated_sentence_low_temp_out", default=low)
    parser.add_argument("--generated_sentence_high_temp_out", default=high)
    args = parser.parse_args()
    random.seed(args.seed); np.random.seed(args.seed); torch.manual_seed(args.seed)
    prefix = {prompt!r}
    generate_sentence(args, prefix, args.generated_sentence_low_temp_out, temperature=0.0)
    generate_sentence(args, prefix, args.generated_sentence_high_temp_out, temperature=1.0)
"""
RMS_NORM = """class RMSNorm(torch.nn.Module):
    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def _norm(self, x):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps)

    def forward(self, x):
        return self._norm(x.float()).type_as(x) * self.weight
"""
CAUSAL = """        scores = query @ key.transpose(2, 3) * (1.0 / math.sqrt(self.head_dim))
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, float("-inf"))
"""
# The assignment's five lines, to the letter: 0 / 0 where no token reaches epsilon.
EPSILON = """                probs = torch.softmax(logits / temperature, dim=-1)
                probs = torch.where(probs >= epsilon, probs, torch.zeros_like(probs))
                probs = probs / probs.sum(dim=-1, keepdim=True)
                chosen = torch.multinomial(probs, num_samples=1)
"""
TOP_P = """                probs = torch.softmax(logits / temperature, dim=-1)
                ordered, ids = torch.sort(probs, descending=True)
                ordered[torch.cumsum(ordered, -1) - ordered > {top_p}] = 0.0
                chosen = ids.gather(-1, torch.multinomial(ordered, num_samples=1))
"""


def llama_of(edition: str) -> str:
    """tests/student/llama.py with an edition's arithmetic, below the courses' base class."""
    text, parts = MODULES["llama.py"], EDITIONS[edition]
    text = text.replace("from rope import", "from utils import *\nfrom rope import")
    base = "from base_llama import LlamaPreTrainedModel, LlamaConfig"
    text = text.replace("from config import LlamaConfig", base)
    text = text.replace(
        "class Llama(nn.Module):\n    def __init__(self, config):\n        super().__init__()",
        "class Llama(LlamaPreTrainedModel):\n    def __init__(self, config):\n"
        "        super().__init__(config)",
    )
    if parts.norm == "rmsnorm":
        text = re.sub(r"class LayerNorm.*?\n\n\n(?=class)", RMS_NORM + "\n\n", text, flags=re.S)
        text = text.replace("LayerNorm", "RMSNorm")
    if parts.attention == "causal":
        text = re.sub(r"        weights = torch\.matmul.*?\n", CAUSAL, text, count=1)
    sampling = EPSILON if parts.epsilon else TOP_P.format(top_p=parts.top_p)
    return re.sub(r"                probs = .*?num_samples=1\)\n", sampling, text, flags=re.S)


def student_files(edition: str, **changes: str | None) -> dict[str, str]:
    """All modules by file name; changes by module name, None leaves one out."""
    files = MODULES | {"llama.py": llama_of(edition), "utils.py": UTILS, "tokenizer.py": TOKENIZER}
    files |= {"base_llama.py": BASE_LLAMA}
    prompt = repr(EDITIONS[edition].prompt_text)
    files["run_llama.py"] = RUN_LLAMA.replace("{prompt!r}", prompt)
    changed = files | {f"{name}.py": text for name, text in changes.items()}
    return {name: text for name, text in changed.items() if text is not None}
