"""mlx-lm, which runs the folder of Nemotron-NAS on Apple's machines."""

from __future__ import annotations

from typing import ClassVar

from fxprune.serve.nemotron import NemotronNas


class Mlx(NemotronNas):
    """It takes a first layer without attention, and asks before it runs code that it needs not."""

    name: ClassVar[str] = "mlx"
    attends_first: ClassVar[bool] = False
    code: ClassVar[bool] = False
    how: ClassVar[str] = "mlx_lm.generate --model {path} --prompt TEXT"


ENGINE = Mlx()
