"""vLLM, which takes MLPs of any width in the folder of Nemotron-NAS."""

from __future__ import annotations

from typing import Any, ClassVar

from fxprune.serve.nemotron import NemotronNas


class Vllm(NemotronNas):
    """It reads the number of units itself, where other engines read a factor."""

    name: ClassVar[str] = "vllm"
    multiple: ClassVar[int] = 1
    own_head_dim: ClassVar[bool] = True
    how: ClassVar[str] = "vllm serve {path} --trust-remote-code"

    def _width(self, hidden: int, width: int) -> dict[str, Any]:
        return {"intermediate_size": width, "hidden_act": "silu"} if width else {}


ENGINE = Vllm()
