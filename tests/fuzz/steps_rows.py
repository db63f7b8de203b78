"""Steps on values with the channels last: linear layers, norms, gates, attention, recurrence."""

from __future__ import annotations

from tests.fuzz.program import Code, Draw, Value, op

ACTIVATIONS = (
    "F.relu({})", "F.gelu({})", "F.silu({})", "torch.tanh({})", "torch.sigmoid({})", "F.elu({})",
    "F.leaky_relu({}, 0.1)", "F.softplus({})", "F.hardswish({})", "{}.abs()", "{}.clamp(min=-1.0)",
    "{} * torch.sigmoid({})", "torch.where({0} > 0, {0}, 0.3 * {0})", "{}.square()",
)  # fmt: skip


def activation(d: Draw, x: str) -> str:
    """An expression."""
    form = d.pick(ACTIVATIONS)
    return form.format(x, x) if "{0}" not in form else form.format(x)


@op("flat rows")
def linear(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    width = d.width()
    layer = code.layer(f"nn.Linear({x.width}, {width}, bias={d.flag()})")
    return code.value(f"{layer}({x.name})", x, width=width)


@op("flat rows map signal")
def act(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    return code.value(activation(d, x.name), x)


@op("flat rows")
def hidden(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    inner, outer = d.width(), d.width()
    a, b = code.layer(f"nn.Linear({x.width}, {inner})"), code.layer(f"nn.Linear({inner}, {outer})")
    return code.value(f"{b}({activation(d, f'{a}({x.name})')})", x, width=outer)


@op("flat rows")
def residual(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    inner = d.width()
    a = code.layer(f"nn.Linear({x.width}, {inner})")
    b = code.layer(f"nn.Linear({inner}, {x.width})")
    start = x.name
    if d.flag():
        start = f"{code.layer(d.pick(('nn.LayerNorm', 'nn.RMSNorm')) + f'({x.width})')}({x.name})"
    hidden = code.temporary(f"{a}({start})")
    branch = f"{b}({activation(d, hidden)})"
    scale = d.pick(("", "0.5 * ", f"{code.parameter(x.width)} * "))
    return code.value(d.pick((f"{x.name} + {scale}{branch}", f"{scale}{branch} + {x.name}")), x)


@op("flat rows")
def gated(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    inner, outer = d.width(), d.width()
    a, b = (code.layer(f"nn.Linear({x.width}, {inner}, bias={d.flag()})") for _ in "ab")
    c = code.layer(f"nn.Linear({inner}, {outer})")
    return code.value(f"{c}(F.silu({a}({x.name})) * {b}({x.name}))", x, width=outer)


@op("flat rows")
def fused_gate(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    inner, outer = d.width(), d.width()
    a = code.layer(f"nn.Linear({x.width}, {2 * inner})")
    b = code.layer(f"nn.Linear({inner}, {outer})")
    halves = code.temporary(f"{a}({x.name})")
    form = d.pick(("F.glu({0}, -1)", "{0}[..., :{1}] * F.gelu({0}[..., {1}:])",
                   "{0}.chunk(2, dim=-1)[0] * {0}.chunk(2, -1)[1].sigmoid()",
                   "{0}[..., ::2] * {0}[..., 1::2].tanh()",
                   "{0}.unflatten(-1, (2, {1})).prod(-2)",
                   "{0}.unflatten(-1, ({1}, 2)).amax(-1)"))  # fmt: skip
    return code.value(f"{b}({form.format(halves, inner)})", x, width=outer)


@op("flat rows")
def norm(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    kind = d.pick(("LayerNorm({0})", "RMSNorm({0})", "LayerNorm({0}, elementwise_affine=False)",
                   "LayerNorm({0}, bias=False)"))  # fmt: skip
    layer = code.layer("nn." + kind.format(x.width))
    return code.value(f"{layer}({x.name})", x)


@op("flat rows")
def own_norm(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    scale = code.parameter(x.width)
    form = d.pick((
        "{1} * ({0} - {0}.mean(-1, keepdim=True)) / ({0}.var(-1, keepdim=True, unbiased=False)"
        " + 0.1).sqrt()",
        "{1} * ({0} * torch.rsqrt({0}.pow(2).mean(-1, keepdim=True) + 0.1))",
        "{1} * F.normalize({0} + 0.01, dim=-1)",
        "{0} / ({0}.norm(dim=-1, keepdim=True) + 0.1)",
        "{1} * {0} / (1 + {0}.abs().amax(-1, keepdim=True))",
        "{1} * ({0} - {0}.mean(-1, keepdim=True)) / (0.1 + {0}.std(-1, keepdim=True))",
    ))  # fmt: skip
    return code.value(form.format(x.name, scale), x)


@op("flat rows map signal")
def affine(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    make = d.pick((code.parameter, code.buffer))
    tail = {"flat": (), "rows": (), "map": (1, 1), "signal": (1,)}[x.kind]
    scale, shift = make(x.width, *tail), make(*d.pick(((x.width, *tail), (1, *tail))))
    form = d.pick(("{0} * {1} + {2}", "{0} * torch.sigmoid({1}) - {2}", "{0} + {2} * {1}",
                   "torch.addcmul({2}, {0}, {1})"))  # fmt: skip
    return code.value(form.format(x.name, scale, shift), x)


@op("flat rows map signal")
def dropout(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    code.drops = True
    source = code.temporary(f"{x.name} * 1.5")  # in place it may write into no other value
    form = d.pick((
        f"F.dropout({source}, 0.3, self.training)",
        f"{code.layer('nn.Dropout(0.25)')}({source})",
        f"{code.layer('nn.Dropout(0.25, inplace=True)')}({source})",
        f"F.dropout({source}, p=0.2, training=self.training, inplace=True)",
    ))  # fmt: skip
    return code.value(form, x)


@op("flat rows map signal")
def add(code: Code, x: Value, d: Draw, others: list[Value]) -> Value | None:
    alike = [o for o in others if (o.kind, o.width, o.space) == (x.kind, x.width, x.space)]
    if not alike:
        return None
    other = d.pick(alike).name
    form = d.pick(("{0} + {1}", "{0} + 0.5 * {1}", "{0} * {1}", "torch.maximum({0}, {1})",
                   "{0} - {1}", "torch.add({0}, {1}, alpha=2)", "torch.stack([{0}, {1}]).sum(0)",
                   "torch.stack([{0}, {1}], 1).mean(1)", "sum([{0}, {1}])",
                   "torch.lerp({0}, {1}, 0.3)"))  # fmt: skip
    return code.value(form.format(x.name, other), x)


@op("flat rows map signal")
def cat(code: Code, x: Value, d: Draw, others: list[Value]) -> Value | None:
    alike = [o for o in others if (o.kind, o.space) == (x.kind, x.space) and o.width <= 40]
    if x.width > 40:
        return None
    other = d.pick(alike)
    axis = -1 if x.kind in ("flat", "rows") else 1
    parts = d.pick((f"{x.name}, {other.name}", f"{other.name}, {x.name}"))
    return code.value(f"torch.cat([{parts}], dim={axis})", x, width=x.width + other.width)


@op("rows")
def attention(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    heads, size = d.pick(((2, 6), (3, 4), (4, 5), (2, 8)))
    groups = d.pick([g for g in (1, 2, 3, 4) if heads % g == 0 and (g > 1 or heads < 4)])
    q, k, v = _projections(code, x, d, heads, groups, size)
    out = code.layer(f"nn.Linear({heads * size}, {x.width})")
    if d.flag():
        q, k = (code.temporary(f"F.normalize({t} + 0.01, dim=-1)") for t in (q, k))
    causal = d.flag()
    mixed = _mixed(code, d, (q, k, v), heads // groups, size, causal)
    join = d.pick(("transpose(1, 2).flatten(2)", f"transpose(1, 2).reshape({x.name}.shape[0], -1, "
                   f"{heads * size})", "permute(0, 2, 1, 3).flatten(-2)"))  # fmt: skip
    skip = d.pick(("", f"{x.name} + "))
    return code.value(f"{skip}{out}({mixed}.{join})", x)


def _projections(
    code: Code, x: Value, d: Draw, heads: int, groups: int, size: int
) -> tuple[str, str, str]:
    if heads == groups and d.flag():
        fused = code.layer(f"nn.Linear({x.width}, {3 * heads * size})")
        form = d.pick((
            "view(*{0}.shape[:2], 3, {1}, {2}).permute(2, 0, 3, 1, 4).unbind(0)",
            "view(*{0}.shape[:2], {1}, {3}).transpose(1, 2).chunk(3, -1)",
            "unflatten(-1, (3, {1}, {2})).transpose(1, 3).unbind(2)",
        ))  # fmt: skip
        names = tuple(code.fresh("t") for _ in "qkv")
        code.line(f"{', '.join(names)} = {fused}({x.name})."
                  + form.format(x.name, heads, size, 3 * size))  # fmt: skip
        return names  # type: ignore[return-value]
    made = []
    for count in (heads, groups, groups):
        layer = code.layer(f"nn.Linear({x.width}, {count * size}, bias={d.flag()})")
        form = d.pick((f"view(*{x.name}.shape[:2], {count}, {size})", f"unflatten(-1, ({count}, "
                       f"{size}))", f"reshape({x.name}.size(0), -1, {count}, {size})"))  # fmt: skip
        made.append(code.temporary(f"{layer}({x.name}).{form}.transpose(1, 2)"))
    return made[0], made[1], made[2]


def _mixed(
    code: Code, d: Draw, qkv: tuple[str, str, str], repeat: int, size: int, causal: bool
) -> str:
    q, k, v = qkv
    if d.flag():
        options = f", is_causal={causal}" + ", enable_gqa=True" * (repeat > 1)
        return code.temporary(f"F.scaled_dot_product_attention({q}, {k}, {v}{options})")
    if repeat > 1:
        form = d.pick(("{0}.repeat_interleave({1}, 1)",
                       "{0}[:, :, None].expand(-1, -1, {1}, -1, -1).flatten(1, 2)"))  # fmt: skip
        k, v = (code.temporary(form.format(t, repeat)) for t in (k, v))
    scores = code.temporary(d.pick((f"{q} @ {k}.transpose(-1, -2) / {size} ** 0.5",
                                    f"torch.einsum('bhid,bhjd->bhij', {q}, {k}) * 0.4"
                                    )))  # fmt: skip
    if causal:
        ahead = code.temporary(f"torch.ones({q}.shape[2], {q}.shape[2], dtype=torch.bool).triu(1)")
        scores = code.temporary(f"{scores}.masked_fill({ahead}, float('-inf'))")
    return code.temporary(f"{scores}.softmax(-1) @ {v}")


@op("rows")
def linear_attention(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    heads, size = 2, d.pick((4, 6))
    q, k, v = (
        code.temporary(
            f"{code.layer(f'nn.Linear({x.width}, {heads * size})')}({x.name})"
            f".unflatten(-1, ({heads}, {size}))"
        )
        for _ in "qkv"
    )
    out = code.layer(f"nn.Linear({heads * size}, {x.width})")
    q, k = (code.temporary(f"F.elu({t}) + 1") for t in (q, k))
    summed = code.temporary(f"torch.einsum('bthd,bthe->bhde', {k}, {v})")
    mixed = code.temporary(f"torch.einsum('bthd,bhde->bthe', {q}, {summed})")
    return code.value(f"{x.name} + {out}({mixed}.flatten(2)) / {x.name}.shape[1]", x)


@op("rows")
def torch_attention(code: Code, x: Value, d: Draw, others: list[Value]) -> Value | None:
    heads = [h for h in (2, 3, 4) if x.width % h == 0]
    if not heads:
        return None
    layer = code.layer(f"nn.MultiheadAttention({x.width}, {d.pick(heads)}, batch_first=True)")
    flag = d.flag()
    expression = f"{layer}({x.name}, {x.name}, {x.name}, need_weights={flag})[0]"
    return code.value(d.pick((expression, f"{x.name} + {expression}")), x)


@op("rows")
def torch_encoder(code: Code, x: Value, d: Draw, others: list[Value]) -> Value | None:
    heads = [h for h in (2, 3, 4) if x.width % h == 0]
    if not heads:
        return None
    code.drops = True
    layer = code.layer(
        f"nn.TransformerEncoderLayer({x.width}, {d.pick(heads)}, {d.width()}, 0.1, "
        f"activation={d.pick(('relu', 'gelu'))!r}, batch_first=True, norm_first={d.flag()})"
    )
    return code.value(f"{layer}({x.name})", x)


@op("rows")
def recurrent(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    width, both, layers = d.width(), d.flag(), d.pick((1, 1, 2))
    layer = code.layer(
        f"nn.{d.pick(('GRU', 'LSTM'))}({x.width}, {width}, num_layers={layers}, "
        f"batch_first=True, bidirectional={both})"
    )
    return code.value(f"{layer}({x.name})[0]", x, width=width * (1 + both))


@op("flat rows")
def weights_by_hand(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    width = d.width()
    if d.flag():
        layer = code.layer(f"nn.Linear({x.width}, {width})")
        back = d.pick((f"F.linear({{}}, {layer}.weight.t())", f"{{}} @ {layer}.weight"))
        return code.value(back.format(f"torch.tanh({layer}({x.name}))"), x)
    weight = code.parameter(x.width, width)
    form = d.pick(("torch.einsum('...c,cd->...d', {0}, {1})", "{0} @ {1}",
                   "torch.matmul({0}, {1} * 0.5)", "F.linear({0}, {1}.t())",
                   "torch.tensordot({0}, {1}, dims=1)"))  # fmt: skip
    return code.value(form.format(x.name, weight) + " * 0.3", x, width=width)


@op("flat rows")
def shared(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    layer = code.layer(f"nn.Linear({x.width}, {x.width})")
    form = d.pick(("{1}(F.relu({1}({0})))", "{0} + {1}(torch.tanh({1}({0})))",
                   "{1}({0}) + {1}({0}.flip(-1))",
                   "{1}({0}) * torch.sigmoid({1}(-{0}))"))  # fmt: skip
    return code.value(form.format(x.name, layer), x)


@op("flat rows")
def normed_weight(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    inner, outer = d.width(), d.width()
    a = code.layer(f"nn.utils.parametrizations.weight_norm(nn.Linear({x.width}, {inner}))")
    b = code.layer(f"nn.Linear({inner}, {outer})")
    return code.value(f"{b}(F.relu({a}({x.name})))", x, width=outer)


@op("rows")
def blocks(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    code.classes.setdefault("Block", _BLOCK)
    style, inner = d.pick(("pre", "post", "parallel")), d.width()
    name = code.fresh("blocks")
    width = x.width
    code.init.append(
        f"self.{name} = nn.ModuleList(Block({width}, {inner}, {style!r}) for _ in range(2))"
    )
    result = code.value(x.name, x)
    code.line(f"for block in self.{name}:")
    code.line(f"    {result.name} = block({result.name})")
    return result


_BLOCK = """\
class Block(nn.Module):
    def __init__(self, width, inner, style):
        super().__init__()
        self.style = style
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * 12), nn.Linear(12, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def mix(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 3, 4)).transpose(1, 3).unbind(2)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def mlp(self, x):
        return self.down(F.gelu(self.up(x)))

    def forward(self, x):
        if self.style == "post":
            x = self.norm1(x + self.mix(x))
            return self.norm2(x + self.mlp(x))
        if self.style == "parallel":
            h = self.norm1(x)
            return x + self.mix(h) + self.mlp(h)
        x = x + self.mix(self.norm1(x))
        return x + self.mlp(self.norm2(x))"""
