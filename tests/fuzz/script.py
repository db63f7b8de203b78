"""A failure as a Python program of a few lines."""

from __future__ import annotations

from tests.fuzz.check import Outcome
from tests.fuzz.grammar import emit, inputs_of
from tests.fuzz.program import Program
from tests.fuzz.subject import Spec

_HEAD = """\
import torch
from torch import nn
from torch.nn import functional as F

import fxprune
from fxprune.plan import Plan
from tests.fuzz.reference import shake
"""
_GRAPH = """\
with torch.no_grad():
    whole = fxprune.rewrite(traced, Plan.of(fxprune.discover(traced), {}))
    want, got = model(*again), whole(*again)
print("the model:", want, "the graph:", got, sep="\\n")
"""
_TRAINING = """\
whole = fxprune.rewrite(traced, Plan.of(fxprune.discover(traced), {}))
for module in (model.train(), whole.train()):
    torch.manual_seed(5)
    print(module(*example))
"""
_PLAN = """\
spec = Spec({kept!r}, {removed!r})
subject = Subject("a failure", model, [(example, {{}}), (again, {{}})])
print(try_plan(capture(subject{dtype}), spec, [(example, {{}}), (again, {{}})]{twin}))
"""
_IMPORTS = (
    "from tests.fuzz.check import try_plan\nfrom tests.fuzz.subject import Spec, Subject, capture\n"
)


def script(program: Program, low: bool, spec: Spec | None, place: int, outcome: Outcome) -> str:
    """The program of a generated module.

    Args:
        program: the module.
        low: in bfloat16.
        spec: the plan; None if it fails without one.
        place: at which of its inputs.
        outcome: what is wrong, for the first line.
    """
    made = emit(program)
    inputs = inputs_of(program, made.second)
    lines = [f"# {outcome}", _HEAD + (_IMPORTS if spec is not None else ""), "", made.source, ""]
    lines.append("torch.manual_seed(0)\nmodel = M().eval()\nshake(model)")
    for name, (args, _) in zip(("example", "again"), (inputs[0], inputs[place]), strict=True):
        lines.append(f"{name} = ({', '.join(map(_made, args))},)")
    if spec is None:
        lines.append("traced = fxprune.trace(model, example)")
        lines.append(_TRAINING if outcome.what == "training" else _GRAPH)
    else:
        half = ", torch.bfloat16" if low else ""
        twin = ", capture(subject)" if low else ""
        kept = dict(spec.kept)
        lines.append(_PLAN.format(kept=kept, removed=spec.removed, dtype=half, twin=twin))
    return "\n".join(lines)


def _made(x: object) -> str:
    shape = ", ".join(map(str, getattr(x, "shape", ())))
    floating = getattr(x, "is_floating_point", lambda: True)()
    return f"torch.randn({shape})" if floating else f"torch.randint(31, ({shape}))"


def zoo_script(family: str, low: bool, spec: Spec | None, outcome: Outcome) -> str:
    """The program of a model of the zoo."""
    lines = [f"# {outcome}", "import torch", "", *_IMPORTS.splitlines()]
    lines += ["from tests.fuzz.check import fidelity, try_shrink",
              "from tests.fuzz.subject import of_the_zoo", "",
              f"subject = of_the_zoo({family!r})",
              "case = capture(subject)"]  # fmt: skip
    if spec is None:
        return "\n".join([*lines, "print(*fidelity(case), sep='\\n')"]) + "\n"
    lines.append(f"spec = Spec({dict(spec.kept)!r}, {spec.removed!r})")
    if outcome.what == "shrink":
        return "\n".join([*lines, "print(try_shrink(case, spec))"]) + "\n"
    if low:
        lines.append("twin, case = case, capture(subject, torch.bfloat16)")
    lines.append(f"print(try_plan(case, spec, case.inputs{', twin' if low else ''}))")
    return "\n".join(lines) + "\n"
