"""Steps that use weights in unusual ways, mix two sequences, or have several ways through."""

from __future__ import annotations

from tests.fuzz.program import Code, Draw, Value, op
from tests.fuzz.steps_rows import activation


@op("flat rows")
def cut_weight(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """A part of a weight, or several weights as one."""
    width, k = d.width(), 3 + d.below(3)
    a = code.layer(f"nn.Linear({x.width}, {width})")
    b = code.layer(f"nn.Linear({x.width}, {k})")
    form, made = d.pick((
        (f"F.linear({{0}}, {a}.weight[:{k}], {a}.bias[:{k}])", k),
        (f"F.linear({{0}}[..., :4], {a}.weight[:, :4])", width),
        (f"F.linear({{0}}, torch.cat([{a}.weight, {b}.weight]))", width + k),
        (f"F.linear({{0}}, torch.cat([{a}.weight, {b}.weight]), "
         f"torch.cat([{a}.bias, {b}.bias])).split([{width}, {k}], -1)[0]", width),
        (f"F.linear({{0}}, {a}.weight * 0.5 + {code.parameter(width, x.width)})", width),
        (f"F.linear({{0}}, {a}.weight.abs().softmax(-1))", width),
        (f"F.linear({{0}}, {a}.weight / {a}.weight.norm(dim=1, keepdim=True), {a}.bias)", width),
        (f"F.linear({{0}}, ({a}.weight.t() @ {code.parameter(width, k)}).t())", k),
    ))  # fmt: skip
    return code.value(form.format(x.name), x, width=made)


@op("flat rows")
def low_rank(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """A projection and its adapter."""
    width, rank = d.width(), d.pick((2, 3))
    base = code.layer(f"nn.Linear({x.width}, {width})")
    down = code.layer(f"nn.Linear({x.width}, {rank}, bias=False)")
    up = code.layer(f"nn.Linear({rank}, {width}, bias=False)")
    return code.value(f"{base}({x.name}) + {up}({down}({x.name})) * 2.0", x, width=width)


@op("flat rows")
def experts(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """Several layers, mixed by a gate that reads the same."""
    count, width = d.pick((2, 3)), d.width()
    gate = code.layer(f"nn.Linear({x.width}, {count})")
    layers = code.layer(
        f"nn.ModuleList(nn.Sequential(nn.Linear({x.width}, 10), nn.GELU(), nn.Linear(10, {width}))"
        f" for _ in range({count}))"
    )
    weights = code.temporary(f"{gate}({x.name}).softmax(-1)")
    form = d.pick(("sum({0}[..., i : i + 1] * e({1}) for i, e in enumerate({2}))",
                   "torch.stack([e({1}) for e in {2}], -1).mul({0}.unsqueeze(-2)).sum(-1)",
                   "({0}.unsqueeze(-2) @ torch.stack([e({1}) for e in {2}], -2)).squeeze(-2)"
                   ))  # fmt: skip
    return code.value(form.format(weights, x.name, layers), x, width=width)


@op("flat rows")
def stacked_weights(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """One parameter for several projections."""
    count, width = d.pick((2, 3)), d.pick((5, 7, 9))
    weight = code.parameter(count, x.width, width)
    form = d.pick(("torch.einsum('...c,ncd->...nd', {0}, {1}).flatten(-2)",
                   "torch.cat([{0} @ w for w in {1}], -1)",
                   "torch.cat([{0} @ {1}[i] for i in range({2})], -1)"))  # fmt: skip
    text = form.format(x.name, weight, count)
    return code.value(f"{text} * 0.3", x, width=count * width)


@op("rows")
def cross(code: Code, x: Value, d: Draw, others: list[Value]) -> Value | None:
    """Attention to another sequence."""
    rows = [o for o in others if o.kind == "rows"]
    memory = d.pick(rows)
    heads, size = d.pick(((2, 4), (3, 5)))
    q = code.layer(f"nn.Linear({x.width}, {heads * size})")
    kv = code.layer(f"nn.Linear({memory.width}, {2 * heads * size})")
    out = code.layer(f"nn.Linear({heads * size}, {x.width})")
    a = code.temporary(f"{q}({x.name}).unflatten(-1, ({heads}, {size})).transpose(1, 2)")
    b, c = code.fresh("t"), code.fresh("t")
    code.line(
        f"{b}, {c} = {kv}({memory.name}).unflatten(-1, (2, {heads}, {size})).permute(2, 0, 3, 1, 4)"
    )
    mixed = d.pick((f"F.scaled_dot_product_attention({a}, {b}, {c})",
                    f"(({a} @ {b}.mT) / {size}**0.5).softmax(-1) @ {c}"))  # fmt: skip
    return code.value(f"{x.name} + {out}(({mixed}).transpose(1, 2).flatten(2))", x)


@op("rows")
def biased_attention(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """Scores with a learned bias for each head and distance, or for each head alone."""
    heads, size = d.pick(((2, 4), (4, 3)))
    table, length = code.parameter(heads, 64), f"{x.name}.shape[1]"
    fused = code.layer(f"nn.Linear({x.width}, {3 * heads * size}, bias=False)")
    out = code.layer(f"nn.Linear({heads * size}, {x.width})")
    q, k, v = (code.fresh("t") for _ in "qkv")
    code.line(f"{q}, {k}, {v} = {fused}({x.name}).chunk(3, -1)")
    for name in (q, k, v):
        code.line(f"{name} = {name}.unflatten(-1, ({heads}, {size})).transpose(1, 2)")
    steps = code.temporary(f"torch.arange({length})")
    far = code.temporary(f"({steps}[:, None] - {steps}[None]).abs()")
    bias = code.temporary(d.pick((f"{table}[:, {far}]", f"{table}[:, :1, None] * {far}",
                                  f"{table}[:, :1, None] * {far}[None].to({x.name}.dtype)"
                                  )))  # fmt: skip
    mixed = d.pick((f"F.scaled_dot_product_attention({q}, {k}, {v}, attn_mask={bias}[None])",
                    f"({q} @ {k}.mT + {bias}).softmax(-1) @ {v}"))  # fmt: skip
    return code.value(f"{x.name} + {out}(({mixed}).transpose(1, 2).flatten(2))", x)


@op("rows")
def rotary(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    heads, half = 2, d.pick((2, 3))
    size = 2 * half
    layer = code.layer(f"nn.Linear({x.width}, {3 * heads * size})")
    out = code.layer(f"nn.Linear({heads * size}, {x.width})")
    q, k, v = (code.fresh("t") for _ in "qkv")
    code.line(
        f"{q}, {k}, {v} = {layer}({x.name}).unflatten(-1, (3, {heads}, {size})).transpose(1, 3)"
        ".unbind(2)"
    )
    name = code.fresh("b")
    code.init.append(f'self.register_buffer("{name}", 0.7 ** torch.arange(1.0, {half + 1}))')
    angle = code.temporary(f"torch.arange({x.name}.shape[1])[:, None] * self.{name}")
    c, s = code.temporary(f"{angle}.cos()"), code.temporary(f"{angle}.sin()")
    turn = d.pick((
        "torch.cat([{0}[..., :{1}] * {2} - {0}[..., {1}:] * {3}, "
        "{0}[..., {1}:] * {2} + {0}[..., :{1}] * {3}], -1)",
        "{0} * torch.cat([{2}, {2}], -1) + torch.cat([-{0}[..., {1}:], {0}[..., :{1}]], -1)"
        " * torch.cat([{3}, {3}], -1)",
        "torch.stack([{0}[..., ::2] * {2} - {0}[..., 1::2] * {3}, "
        "{0}[..., 1::2] * {2} + {0}[..., ::2] * {3}], -1).flatten(-2)",
    ))  # fmt: skip
    for each in (q, k):
        code.line(f"{each} = {turn.format(each, half, c, s)}")
    mixed = f"F.scaled_dot_product_attention({q}, {k}, {v}, is_causal=True)"
    return code.value(f"{x.name} + {out}({mixed}.transpose(1, 2).flatten(2))", x)


@op("flat rows map signal")
def sequential(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """A loop over the children of a module."""
    if x.kind in ("map", "signal"):
        n = 2 if x.kind == "map" else 1
        parts = f"nn.Conv{n}d({x.width}, 10, 1), nn.ReLU(), nn.Conv{n}d(10, 12, 3, padding=1)"
    else:
        parts = f"nn.Linear({x.width}, 10), nn.PReLU(), nn.Linear(10, 12)"
    layer = code.layer(f"nn.Sequential({parts})")
    if d.flag():
        return code.value(f"{layer}({x.name})", x, width=12)
    result = code.value(x.name, x, width=12)
    code.line(f"for part in {layer}:")
    code.line(f"    {result.name} = part({result.name})")
    return result


@op("map signal")
def slopes(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    return code.value(f"{code.layer(f'nn.PReLU({x.width})')}({x.name})", x)


@op("flat rows")
def two_ways(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """Two branches of one value meet again."""
    inner = d.width()
    a, b = (code.layer(f"nn.Linear({x.width}, {inner})") for _ in "ab")
    c = code.layer(f"nn.Linear({inner}, {x.width})")
    first = code.temporary(activation(d, f"{a}({x.name})"))
    second = code.temporary(f"{b}({x.name})")
    form = d.pick(("{0} + {1}", "{0} * {1}", "torch.where({1} > 0, {0}, {1})", "{0} - {1}.mean()",
                   "torch.cat([{0}, {1}], -1).unflatten(-1, (2, -1)).sum(-2)",
                   "torch.stack([{0}, {1}]).amax(0)",
                   "({0} > {1}) * {0}", "torch.addcmul({0}, {0}, {1}, value=0.5)"))  # fmt: skip
    return code.value(f"{c}({form.format(first, second)})", x)


@op("map")
def large_kernel(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """Convolution by unfolding, or of an own weight."""
    width = d.width()
    if d.flag():
        layer = code.layer(f"nn.Linear({9 * x.width}, {width})")
        rows = code.temporary(f"F.unfold({x.name}, 3, padding=1).transpose(1, 2)")
        return code.value(
            f"{layer}({rows}).transpose(1, 2).unflatten(2, {x.name}.shape[2:])", x, width=width
        )
    weight = code.parameter(width, x.width, 3, 3)
    return code.value(f"F.conv2d({x.name}, {weight} * 0.2, padding=1)", x, width=width)


@op("rows")
def second_mask(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """A mask made of the values."""
    form = d.pick(("{0} * ({0}.mean(-1, keepdim=True) > 0)",
                   "{0}.masked_fill({0}[..., :1] < 0, 0.0)",
                   "torch.where({0}.abs().sum(-1, keepdim=True) > 3, {0}, {0}.new_zeros(()))",
                   "{0} * ({0} != 0).any(-1, keepdim=True)"))  # fmt: skip
    return code.value(form.format(x.name), x)
