"""Random programs, and the modules they are."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import nn

from tests.fuzz import (  # noqa: F401  (they register their ops)
    steps_maps,
    steps_memory,
    steps_more,
    steps_numbers,
    steps_rows,
)
from tests.fuzz.program import OPS, Code, Draw, Program, Step, Value, draws
from tests.fuzz.reference import flat, shake
from tests.fuzz.subject import Inputs, Subject

DOMAINS = ("features", "sequence", "tokens", "image", "signal")
VOCABULARY = 31
_START = {
    "features": "flat",
    "sequence": "rows",
    "tokens": "rows",
    "image": "map",
    "signal": "signal",
}
_FIRST = {"flat": "linear hidden", "rows": "linear hidden", "map": "conv", "signal": "conv"}
_SIZES: dict[str, tuple[tuple[int, ...], ...]] = {
    "features": ((3,), (5,), (1,), (2,), (9,)),
    "sequence": ((3, 7), (2, 11), (5, 4), (1, 7), (4, 22), (3, 17)),
    "tokens": ((3, 7), (2, 11), (5, 4), (1, 7), (4, 22), (3, 17)),
    "image": ((3, 16, 12), (2, 20, 28), (1, 16, 12), (5, 13, 9), (2, 32, 32)),
    "signal": ((3, 14), (2, 22), (1, 14), (5, 9)),
}


@dataclass(frozen=True)
class Emitted:
    """A program as source.

    Attributes:
        source: of a class ``M``.
        second: whether it takes a second input, of shape (batch, 5).
        drops: whether it draws random numbers in training.
        keeps: whether it keeps statistics in training.
    """

    source: str
    second: bool
    drops: bool
    keeps: bool


def random_program(seed: int, domain: str) -> Program:
    """A program by its seed."""
    draw = random.Random(f"{domain}-{seed}")
    steps: list[Step] = []
    numbers = draws(draw)
    length = draw.randint(4, 12)
    while len(steps) < length:
        values = values_of(Program(domain, tuple(steps), (0,), 0, numbers))
        keys = list(values)
        source = draw.choice(keys[-2:]) if draw.random() < 0.85 else draw.choice(keys)
        kind = values[source].kind
        names = [name for name, (kinds, _) in OPS.items() if kind in kinds]
        if not steps and draw.random() < 0.8:
            names = _FIRST[kind].split()
        others = tuple(draw.choice(keys) for _ in range(2))
        step = Step(len(steps) + 1, draw.choice(names), (source, *others), draws(draw))
        steps.append(step)
    values = values_of(Program(domain, tuple(steps), (0,), 0, numbers))
    last = list(values)[-1]
    extra = tuple(draw.choice(list(values)) for _ in range(draw.choice((0, 0, 1, 2))))
    return Program(domain, tuple(steps), (last, *extra), draw.randrange(4), numbers)


def values_of(program: Program) -> dict[int, Value]:
    """What each step gives."""
    return _walk(program)[1]


def _walk(program: Program) -> tuple[Code, dict[int, Value], bool]:
    code, d = Code(), Draw(program.draws)
    values = {0: _input(code, program.domain, d)}
    second = d.below(4) == 0
    if second:
        values[-1] = Value("extra", "flat", 5)
    for step in program.steps:
        kinds, function = OPS[step.op]
        code.key = step.key
        known = [values[key] for key in step.sources if key in values]
        made = None
        if known[0].kind in kinds and known[0].width <= 48:
            made = function(code, known[0], Draw(step.draws), known)
        # Where a step does not apply, what it reads stands for it.
        values[step.key] = made or known[0]
    return code, values, second


def _input(code: Code, domain: str, d: Draw) -> Value:
    kind = _START[domain]
    if domain != "tokens":
        width = {"features": 9, "sequence": 9, "image": 3, "signal": 4}[domain]
        return Value("x", kind, width, {"flat": "", "rows": "T", "map": "S", "signal": "L"}[kind])
    width = d.width()
    layer = code.layer(f"nn.Embedding({VOCABULARY}, {width})")
    text = f"{layer}(x)"
    if d.flag():
        places = code.layer(f"nn.Embedding(64, {width})")
        text += f" + {places}(torch.arange(x.shape[1]))"
    return code.value(text, Value("x", kind, width, "T"))


def emit(program: Program) -> Emitted:
    """The source of a program's module."""
    code, values, second = _walk(program)
    code.key = 99
    d = Draw(program.draws[::-1])
    results = []
    for key in program.outputs:
        value = values[key]
        name = value.name
        if key == program.outputs[0] or d.below(3):
            layer = {
                "flat": f"nn.Linear({value.width}, 4)", "rows": f"nn.Linear({value.width}, 4)",
                "map": f"nn.Conv2d({value.width}, 4, 1)",
                "signal": f"nn.Conv1d({value.width}, 4, 1)",
            }[value.kind]  # fmt: skip
            name = f"{code.layer(layer)}({name})"
        results.append(name + d.pick(("", "", " * 1000.0", " * 0.01")))
    inside = ", ".join(results)
    if program.form == 0 and len(results) == 1:
        text = inside
    elif program.form == 0:
        text = f"{{'first': {results[0]}, 'rest': [{', '.join(results[1:])}], 'none': None}}"
    elif program.form == 3:
        text = "{" + ", ".join(f'"out{i}": {each}' for i, each in enumerate(results)) + "}"
    else:
        text = f"[{inside}]" if program.form == 2 else f"({inside},)"
    code.line(f"return {text}")
    arguments = ["x", "extra"] if second else ["x"]
    return Emitted(code.source(arguments), second, code.drops, code.keeps)


def build(source: str) -> nn.Module:
    """The module of a source, its weights by a fixed seed."""
    space: dict[str, object] = {"torch": torch, "nn": nn, "F": nn.functional}
    exec(compile(source, "<generated>", "exec"), space)
    torch.manual_seed(0)
    model: nn.Module = space["M"]().eval()  # type: ignore[operator]
    shake(model)
    return model


def inputs_of(program: Program, second: bool) -> list[Inputs]:
    """Inputs of several sizes, the first to trace with."""
    sizes = list(_SIZES[program.domain])
    d = Draw(program.draws[3:])
    if d.below(3) == 0:
        # Sizes that a width may have too, so that axes can be mistaken for one another.
        sizes[0] = tuple(d.pick((6, 8, 10, 12)) for _ in sizes[0])
    return [(_values(program.domain, size, second), {}) for size in sizes]


def _values(domain: str, size: tuple[int, ...], second: bool) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(sum(size))
    batch, *rest = size
    if domain == "tokens":
        first = torch.randint(VOCABULARY, size, generator=generator)
    else:
        shape = {"features": (batch, 9), "sequence": (*size, 9), "image": (batch, 3, *rest),
                 "signal": (batch, 4, *rest)}[domain]  # fmt: skip
        first = torch.randn(shape, generator=generator)
    return (first, torch.randn(batch, 5, generator=generator)) if second else (first,)


def subject_of(program: Program) -> Subject | None:
    """A program as a subject; None if its module does not run, or gives nothing to compare."""
    made = emit(program)
    inputs = inputs_of(program, made.second)
    try:
        model = build(made.source)
        with torch.no_grad():
            args = tuple(x.clone() for x in inputs[0][0])
            outputs = flat(model(*args))
    except Exception:
        return None
    fine = [o.isfinite().all() and o.abs().max() < 1e4 for o in outputs]
    if not all(fine) or not outputs or outputs[0].std() < 1e-5 or not list(model.parameters()):
        return None
    name = f"generated-{program.domain}"
    return Subject(name, model, inputs, training=made.drops and not made.keeps)
