"""Which files third parties own, where each comes from, and which SHA-256 it must have.

stories42M.pt has no published hash; it is built from stories42M.bin, which has one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

HOSTS = {
    "huggingface": "https://huggingface.co",
    "github": "https://raw.githubusercontent.com",
    "cmu": "https://www.cs.cmu.edu",
}
TINYLLAMAS = "karpathy/tinyllamas/resolve/0bd21da7698eaf29a0d7de3992de8a46ef624add"
FALL2025 = "cmu-l3/anlp-fall2025-hw1/36578d4c79d791b06ccd0fc6d0ade3d937d5f450"
FALL2024 = "neubig/minllama-assignment/2951cddba218b7ddfe69295b77ad51a05107d384"
STORIES42M_BIN_SHA256 = "9f65a1000e17d0bc167dd6332e0ce5119a0222a3d920cead5bce413bfab2ee7b"
STORIES42M_ARGS = {
    "dim": 512,
    "n_layers": 8,
    "n_heads": 8,
    "n_kv_heads": 8,
    "vocab_size": 32000,
    "max_seq_len": 1024,
}


@dataclass(frozen=True)
class Source:
    """One place of a file: a key of `HOSTS`, the path there, its SHA-256 if one is published."""

    host: str
    path: str
    sha256: str | None = None


@dataclass(frozen=True)
class RemoteFile:
    """A file and its sources, tried in turn.

    `model_args` marks a checkpoint: it has no hash of its own, and is right if it can be read and
    has these values. It is built from a source whose path ends in .bin.
    """

    name: str
    sources: tuple[Source, ...]
    model_args: Mapping[str, int] | None = None


# In the format of sha256sum -c.
GITHUB_SHA256SUMS = """\
9e556afd44213b6bd1be2b850ebbbd98f5481437a8021afaf58ee7fb1818d347  tokenizer.model
94f5f19530f4bdffe7502d44004f3ac6334cf0f97059c82e1705196fea027a44  sanity_check.data
34f7c763a3bb025940029bd970594e985bf69b7ed6e693a8f5cccbef0cee55b0  sanity_check-fall2024.data
57b5f9defc9489955829a935d972b85a5fa69f482c7aabdd496e24ffc1b082ee  rotary_embedding_actual.data
5e66b55c2c6784e120e422e40bc2cd27ffdd00ac3fd9515035d846ddea1cb118  optimizer_test.npy
77b817e0dce16a9bc8d3a6bcb88035db68f7d783dc8a565737581fadd05db815  optimizer_test-fall2024.npy
7aeac81f2a387f2ce7fab98ed8f40ef85cc9c8ad11bcbb63b122e95665cb1f35  data/sst-train.txt
11963c76cd073e68006da0390620aadf5a4b8f775e2f900e92a50b3002e39b9b  data/sst-dev.txt
bdcc8352d37bdc82113e4a4dd887b824144201539d5a1e49be566232d306a4ba  data/sst-test.txt
831e6914e25d9b9eb56ff9095b3f035bdaf1b9568d385a70ef481c82af0382b3  data/sst-label-mapping.json
278e200499d1d68a1a9d80e3947a2203cc97130632d8a53f2b9c11de9cb6c699  data/cfimdb-train.txt
b38f0c095c4624e85927116728140e96d0221969b34146f65eae5b5bb24752b8  data/cfimdb-dev.txt
8ad2f6da7bfb0e8fc36cf89eda47c574cc9c35d6347e665f31bc904d9ecfe0a7  data/cfimdb-test.txt
afeac43f5a5fe8758469078418519df4c8503c2e30e2fcf6c61464fce3d44a36  data/cfimdb-label-mapping.json
"""
# Where a file is not at FALL2025 under its own name, or not only there.
GITHUB_PATHS = {
    "sanity_check-fall2024.data": (f"{FALL2024}/sanity_check.data",),
    "optimizer_test-fall2024.npy": (f"{FALL2024}/optimizer_test.npy",),
    "rotary_embedding_actual.data": (
        f"{FALL2025}/rotary_embedding_actual.data",
        f"{FALL2024}/rotary_embedding_actual.data",
    ),
}


def _from_github(line: str) -> RemoteFile:
    sha256, name = line.split()
    paths = GITHUB_PATHS.get(name, (f"{FALL2025}/{name}",))
    return RemoteFile(name, tuple(Source("github", path, sha256) for path in paths))


FILES = (
    RemoteFile(
        "stories42M.pt",
        (
            Source("huggingface", f"{TINYLLAMAS}/stories42M.bin", STORIES42M_BIN_SHA256),
            Source("cmu", "~vijayv/stories42M.pt"),
        ),
        STORIES42M_ARGS,
    ),
    *map(_from_github, GITHUB_SHA256SUMS.splitlines()),
)
