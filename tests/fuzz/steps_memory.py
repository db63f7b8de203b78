"""Steps that write into memory, share it, count sizes, or use numbers of their own."""

from __future__ import annotations

from tests.fuzz.program import Code, Draw, Value, op

LAST = "flat rows"


def _own(code: Code, x: Value, d: Draw) -> str:
    """A variable whose memory no other value shares."""
    form = d.pick(("{0}.clone()", "{0} * 1.0", "{0}.to({0}.dtype, copy=True)", "layer"))
    if form == "layer":
        return code.temporary(f"{code.layer(f'nn.Linear({x.width}, {x.width})')}({x.name})")
    return code.temporary(form.format(x.name))


@op(LAST)
def write_whole(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    own = _own(code, x, d)
    form = d.pick(("{} += 1.0", "{}.mul_(0.5)", "{}.relu_()", "F.relu({}, inplace=True)",
                   "{}.clamp_(min=0.0)", "{}.add_({}.sigmoid())", "{} *= 2.0", "{}.tanh_()",
                   "{}.sub_({}.detach() * 0.3)"))  # fmt: skip
    code.line(form.format(own, own))
    return code.value(own, x)


@op(LAST)
def write_view(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """What is written through a view shows in the whole."""
    own, k = _own(code, x, d), 2 + d.below(x.width - 3)
    view = d.pick((f"[..., :{k}]", f"[..., {k}:]", f".narrow(-1, 1, {k - 1})", "[..., ::2]",
                   f".view({x.width}, -1)[1]" if x.kind == "flat" else "[:, 0]", "[..., 0]",
                   ".flatten(0)", ".transpose(0, -1)", "[:1]"))  # fmt: skip
    part = code.temporary(f"{own}{view}")
    form = d.pick(("{} += 1.0", "{}.mul_(0.5)", "{}.zero_()", "{}.relu_()", "{}.fill_(0.25)"))
    code.line(form.format(part))
    return code.value(own, x)


@op(LAST)
def write_copy(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """What is written into a copy does not."""
    own, k = _own(code, x, d), 2 + d.below(x.width - 3)
    places = ", ".join(map(str, range(k)))
    copy = d.pick((f"[..., [{places}]]", f"[..., :{k}].clone()", f"[..., torch.arange({k})]",
                   f".index_select(-1, torch.arange({k}))", f"[..., :{k}].contiguous() + 0.0",
                   f"[..., :{k}].to(torch.float32, copy=True).to({own}.dtype)"))  # fmt: skip
    part = code.temporary(f"{own}{copy}")
    code.line(d.pick(("{} += 1.0", "{}.mul_(3.0)", "{}.relu_()")).format(part))
    layer = code.layer(f"nn.Linear({k}, {x.width})")
    return code.value(f"{own} + {layer}({part})", x)


@op(LAST)
def write_index(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    own, k = _own(code, x, d), 2 + d.below(x.width - 3)
    form = d.pick((f"[..., :{k}] = 0.5", f"[..., {k}] = 1.0", "[:, 0] = 0.25",
                   f"[..., :{k}] = {own}[..., -{k}:].clone()", f"[..., {k}:] *= 2.0",
                   f"[..., [0, 1]] = {own}[..., [1, 0]]", f"[{own} < 0] = 0.0"))  # fmt: skip
    code.line(f"{own}{form}")
    return code.value(own, x)


@op(LAST)
def literal(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """A tensor that the code spells out, perhaps written into: it is made anew in each call."""
    numbers = ", ".join(f"{0.5 + 0.37 * ((i * 7) % 11)}" for i in range(x.width))
    made = code.temporary(
        d.pick((f"torch.tensor([{numbers}])", f"torch.linspace(0.5, 2.0, {x.width})"))
    )
    if d.flag():
        code.line(
            d.pick(("{0} += 1", "{0}.mul_(0.5)", "{0}[0] = 2.0", "{0}[:3] *= 1.5")).format(made)
        )
    return code.value(f"{x.name} * {made}.to({x.name}.dtype)", x)


@op("flat rows map signal")
def branch(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """Other code for other sizes."""
    axis = {"flat": 0, "rows": d.pick((0, 1)), "map": d.pick((0, 2, 3)), "signal": d.pick((0, 2))}
    at = axis[x.kind]
    size = f"{x.name}.shape[{at}]"
    edge = d.pick((2, 4) if at == 0 else (5, 8, 16))
    test = d.pick(
        (f"{size} > {edge}", f"{size} % 2 == 0", f"{size} == {edge}", f"{size} <= {edge}")
    )
    result = code.value(d.pick(("{0} * 2.0 if {1} else {0}", "{0} if {1} else {0}.tanh()"))
                        .format(x.name, test), x)  # fmt: skip
    return result


@op("rows")
def by_size(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """Numbers made of sizes."""
    form = d.pick(("{0} / {0}.shape[1]", "{0} * {0}.size(0) ** 0.5", "{0} - 0.1 * {0}.shape[1]",
                   "{0} * min({0}.shape[1], 6)", "{0} + max({0}.shape[0], 4) * 0.1",
                   "{0} * ({0}.shape[1] // 3)", "{0} * ({0}.shape[1] > 5)"))  # fmt: skip
    return code.value(form.format(x.name), x)


@op("rows")
def over_time(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    form = d.pick(("{0}.cumsum(1)", "{0}.roll(1, 1)", "{0}.flip(1)",
                   "{0} - {0}.mean(1, keepdim=True)",
                   "{0} + {0}[:, -1:]", "{0} * {0}.softmax(1)", "{0} + {0}[:, :1].expand_as({0})",
                   "torch.cat([{0}[:, :1] * 0, {0}[:, :-1]], 1)",
                   "F.pad({0}, (0, 0, 1, 0))[:, :-1]", "{0} + {0}.sum(1, keepdim=True).tanh()",
                   "torch.bmm(torch.bmm({0}, {0}.transpose(1, 2)).softmax(-1), {0})",
                   "{0}.masked_fill((torch.arange({0}.shape[1]) % 3 == 1)[None, :, None], 0.0)",
                   "{0} * torch.arange({0}.shape[1], dtype={0}.dtype)[:, None] * 0.2",
                   "{0}.reshape(-1, {1}).reshape({0}.shape[0], -1, {1})",
                   "{0}.reshape(-1, {1}).view({0}.shape)"))  # fmt: skip
    return code.value(form.format(x.name, x.width), x)


@op("rows")
def other_length(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    token = code.parameter(1, 1, x.width)
    form = d.pick(("torch.cat([{1}.expand({0}.shape[0], -1, -1), {0}], 1)", "{0}[:, 1:]",
                   "{0}[:, ::2]", "torch.cat([{0}, {0} * 0.5], dim=1)", "{0}[:, -3:]",
                   "{0}.repeat(1, 2, 1)", "{0}[:, : {0}.shape[1] // 2 + 1]"))  # fmt: skip
    return code.value(form.format(x.name, token), x, space=code.fresh("T"))


@op("flat rows")
def over_channels(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    form = d.pick(("{0}.flip(-1)", "{0}.roll(2, -1)", "{0}.softmax(-1)",
                   "{0} - {0}.mean(-1, keepdim=True)",
                   "{0} * {0}.amax(-1, keepdim=True)", "{0}.cumsum(-1)",
                   "{0} + {0}.sum(-1, keepdim=True)",
                   "F.log_softmax({0}, dim=-1)", "{0} + torch.logsumexp({0}, -1, keepdim=True)",
                   "{0}.sort(-1).values", "{0} * (1 + {0}.argmax(-1, keepdim=True))",
                   "F.cosine_similarity({0}, {0}.tanh(), dim=-1).unsqueeze(-1) + {0}",
                   "{0} + {0}.norm(dim=-1, keepdim=True)",
                   "torch.fft.rfft({0}, dim=-1).abs().mean(-1, keepdim=True) + {0}",
                   "{0} * {0}.topk(2, -1).values.sum(-1, keepdim=True)"))  # fmt: skip
    return code.value(form.format(x.name), x)


@op("flat rows")
def rearranged(code: Code, x: Value, d: Draw, others: list[Value]) -> Value | None:
    if x.width > 32:
        return None
    half, k = x.width // 2, 1 + d.below(x.width - 2)
    form, width = d.pick((
        ("{0}[..., ::2]", (x.width + 1) // 2), ("{0}.repeat_interleave(2, -1)", 2 * x.width),
        ("torch.cat([{0}, {0}], -1)", 2 * x.width), ("F.pad({0}, (1, 2))", x.width + 3),
        (f"{{0}}[..., {k}:]", x.width - k), (f"{{0}}[..., :{k + 1}]", k + 1),
        (f"torch.cat({{0}}.split([{k}, {x.width - k}], -1)[::-1], -1)", x.width),
        (f"{{0}}.unflatten(-1, ({half}, 2)).transpose(-1, -2).flatten(-2)", 2 * half),
        (f"{{0}}.unflatten(-1, (2, {half})).sum(-2)", half),
        (f"torch.stack([{{0}}[..., :{half}], {{0}}[..., :{half}].tanh()], -1).flatten(-2)",
         2 * half),
        ("torch.cat([-{0}[..., 1:], {0}[..., :1]], -1)", x.width),
        (f"{{0}}[..., {list(range(x.width - 1, 0, -1))}]", x.width - 1),
        (f"({{0}}.unsqueeze(-1) * {code.parameter(3)}).flatten(-2)", 3 * x.width),
        ("{0}.expand_as({0}).reshape({0}.shape)", x.width),
    ))  # fmt: skip
    if f"{half}, 2)" in form or f"(2, {half})" in form:
        form = form.replace("{0}.unf", f"{{0}}[..., :{2 * half}].unf")
    if width < 3:
        return None
    return code.value(form.format(x.name), x, width=width)


@op("rows")
def to_flat_rows(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    form = d.pick(("{0}.mean(1)", "{0}[:, -1]", "{0}.amax(1)", "{0}[:, 0]", "{0}.sum(dim=1) * 0.2",
                   "{0}.max(dim=1).values", "{0}.select(1, 0)",
                   "({0} * {0}.mean(-1, keepdim=True).softmax(1)).sum(1)",
                   "{0}[torch.arange({0}.shape[0]), {0}.shape[1] - 1]"))  # fmt: skip
    return code.value(form.format(x.name), x, kind="flat", space="")


@op("rows map signal")
def broadcast(code: Code, x: Value, d: Draw, others: list[Value]) -> Value | None:
    """A vector of each example joins every place."""
    flat = [o for o in others if o.kind == "flat"]
    if not flat:
        return None
    other = d.pick(flat)
    layer = code.layer(f"nn.Linear({other.width}, {x.width})")
    tail = {"rows": "[:, None]", "map": "[:, :, None, None]", "signal": "[..., None]"}[x.kind]
    sign = d.pick(("+", "*"))
    return code.value(f"{x.name} {sign} {layer}({other.name}){tail}", x)


@op("flat rows map signal")
def gradient_tricks(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    form = d.pick(("{0} + ({0}.tanh() - {0}).detach()", "grad", "{0}.contiguous()",
                   "{0}.float().to({0}.dtype)",
                   "nn.Identity()({0})", "{0}.to(dtype={0}.dtype)",
                   "{0}.type_as({0})"))  # fmt: skip
    if form != "grad":
        return code.value(form.format(x.name), x)
    code.line("with torch.no_grad():")
    scale = code.fresh("t")
    code.line(f"    {scale} = {x.name}.abs().mean() + 1.0")
    return code.value(f"{x.name} / {scale}", x)
