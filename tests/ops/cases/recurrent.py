"""Recurrent layers and cells, in one and both directions, with states given and not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.ops.single import Case, mid


def layer(name: str, make: Any, axes: dict[str, str], out: int = 9, **options: Any) -> Case:
    """Between two linear layers, batch first."""
    call = options.pop("call", lambda m, x: m.r(x)[0])
    extra = options.pop("extra", dict)
    return mid(
        name,
        call,
        down=out,
        extra=lambda: {"r": make(), **extra()},
        axes={f"r.{site}": text for site, text in axes.items()},
        **{"alone": True, **options},
    )


def _unrolled(m: Any, x: Tensor) -> Tensor:
    """A cell by hand over the sequence, from states of its own making."""
    state = m.start(x[:, 0])
    cell = torch.zeros_like(state)
    steps = []
    for place in range(7):
        state, cell = m.r(x[:, place], (state, cell))
        steps.append(state)
    return torch.stack(steps, 1)


def _read(m: Any, x: Tensor) -> Tensor:
    """An encoder's last state begins the decoder's."""
    _, states = m.r(x)
    return m.other(x.flip(1), states)[0]


LSTM = {
    "weight_ih_l0[0]": "(4! x 9)",
    "weight_ih_l0[1]": "12",
    "weight_hh_l0[0]": "(4! x 9)",
    "weight_hh_l0[1]": "9",
    "bias_ih_l0[0]": "(4! x 9)",
    "bias_hh_l0[0]": "(4! x 9)",
}

CASES = [
    layer("lstm", lambda: nn.LSTM(12, 9, batch_first=True), LSTM),
    layer("lstm-length-first", lambda: nn.LSTM(12, 9), LSTM, inputs=((7, 2, 6),), batches=False),
    layer(
        "lstm-deep-both-ways",
        lambda: nn.LSTM(12, 9, 2, batch_first=True, bidirectional=True, bias=False),
        {
            "weight_ih_l0_reverse[0]": "(4! x 9)",
            "weight_ih_l1[1]": "(9 + 9)",
            "weight_ih_l1_reverse[1]": "(9 + 9)",
            "weight_hh_l1_reverse[1]": "9",
        },
        18,
    ),
    layer(
        "gru",
        lambda: nn.GRU(12, 9, 2, batch_first=True),
        {"weight_ih_l0[0]": "(3! x 9)", "weight_ih_l1[1]": "9", "weight_hh_l1[1]": "9"},
    ),
    layer(
        "gru-last-state",
        lambda: nn.GRU(12, 9, 1, batch_first=True, bidirectional=True),
        {"weight_ih_l0[0]": "(3! x 9)"},
        18,
        call=lambda m, x: torch.cat(tuple(m.r(x)[1]), -1),
    ),
    layer(
        "rnn",
        lambda: nn.RNN(12, 9, batch_first=True, nonlinearity="relu"),
        {"weight_ih_l0[0]": "9", "weight_hh_l0[0]": "9", "weight_hh_l0[1]": "9"},
    ),
    layer(
        "lstm-cell",
        lambda: nn.LSTMCell(12, 9),
        {"weight_ih[0]": "(4! x 9)", "weight_hh[1]": "9", "bias_hh[0]": "(4! x 9)"},
        call=_unrolled,
        extra=lambda: {"start": nn.Linear(12, 9)},
    ),
    layer(
        "gru-cell",
        lambda: nn.GRUCell(12, 9),
        {"weight_ih[0]": "(3! x 9)", "weight_hh[1]": "9"},
        call=lambda m, x: m.r(x[:, 0]),
    ),
    layer(
        "rnn-cell", lambda: nn.RNNCell(12, 9), {"weight_hh[0]": "9"}, call=lambda m, x: m.r(x[:, 0])
    ),
    layer(
        "lstm-encoder-and-decoder",
        lambda: nn.LSTM(12, 9, batch_first=True),
        LSTM,
        call=_read,
        extra=lambda: {"other": nn.LSTM(12, 9, batch_first=True)},
    ),
    layer(
        "gru-residual",
        lambda: nn.GRU(12, 12, batch_first=True),
        {"weight_ih_l0[0]": "(3! x 12)", "weight_ih_l0[1]": "12"},
        12,
        call=lambda m, x: x + m.r(x)[0],
    ),
]
