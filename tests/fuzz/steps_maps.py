"""Steps on pictures and signals: convolutions, pooling, resizing, and back to rows."""

from __future__ import annotations

from tests.fuzz.program import Code, Draw, Value, op
from tests.fuzz.steps_rows import activation


def _convolution(
    code: Code, d: Draw, kind: str, a: int, b: int, kernel: int, more: str = ""
) -> str:
    dims = 2 if kind == "map" else 1
    return code.layer(f"nn.Conv{dims}d({a}, {b}, {kernel}, padding={kernel // 2}{more})")


@op("map signal")
def conv(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    width, kernel = d.width(), d.pick((1, 3))
    layer = _convolution(code, d, x.kind, x.width, width, kernel, f", bias={d.flag()}")
    return code.value(f"{layer}({x.name})", x, width=width)


@op("map signal")
def down(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    width = d.width()
    layer = _convolution(code, d, x.kind, x.width, width, 3, ", stride=2")
    return code.value(f"{layer}({x.name})", x, width=width, space=f"{x.space}/")


@op("map signal")
def pool(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    dims = 2 if x.kind == "map" else 1
    form = d.pick((f"F.max_pool{dims}d({x.name}, 2)", f"F.avg_pool{dims}d({x.name}, 2)"))
    return code.value(form, x, space=f"{x.space}|")


@op("map signal")
def pool_same(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    dims = 2 if x.kind == "map" else 1
    form = d.pick(("F.max_pool{0}d({1}, 3, 1, 1)", "F.avg_pool{0}d({1}, 3, 1, 1)"))
    return code.value(form.format(dims, x.name), x)


@op("map signal")
def grouped(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    groups = d.pick([g for g in (2, 3, 4) if x.width % g == 0] or [1])
    each = d.pick((2, 3, 4))
    options = f", groups={groups}" + d.pick((", dilation=2", ""))
    layer = _convolution(code, d, x.kind, x.width, groups * each, d.pick((1, 3)), options)
    if "dilation" in options:
        return code.value(f"{layer}({x.name})", x, width=groups * each, space=code.fresh("s"))
    return code.value(f"{layer}({x.name})", x, width=groups * each)


@op("map signal")
def depthwise(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    multiple = d.pick((1, 1, 2))
    layer = _convolution(
        code, d, x.kind, x.width, x.width * multiple, 3, f", groups={x.width}, bias={d.flag()}"
    )
    return code.value(f"{layer}({x.name})", x, width=x.width * multiple)


@op("map signal flat")
def channel_norm(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    dims = 2 if x.kind == "map" else 1
    groups = [g for g in (2, 3, 4) if x.width % g == 0] or [1]
    kinds = [f"BatchNorm{dims}d({x.width}, affine={d.flag()})"]
    if x.kind != "flat":
        kinds += [f"GroupNorm({d.pick(groups)}, {x.width})", f"GroupNorm(1, {x.width})",
                  f"InstanceNorm{dims}d({x.width}, affine={d.flag()})"]  # fmt: skip
    kind = d.pick(kinds)
    code.keeps |= kind.startswith("Batch")
    return code.value(f"{code.layer(f'nn.{kind}')}({x.name})", x)


@op("map signal")
def bottleneck(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    inner = d.width()
    a = _convolution(code, d, x.kind, x.width, inner, d.pick((1, 3)))
    b = _convolution(code, d, x.kind, inner, x.width, d.pick((1, 3)))
    inside = code.temporary(f"{a}({x.name})")
    if d.flag():
        dims = 2 if x.kind == "map" else 1
        code.keeps = True
        inside = code.temporary(f"{code.layer(f'nn.BatchNorm{dims}d({inner})')}({inside})")
    return code.value(f"{x.name} + {b}({activation(d, inside)})", x)


@op("map")
def squeeze(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    inner = d.pick((4, 6))
    a, b = (
        code.layer(f"nn.Linear({x.width}, {inner})"),
        code.layer(f"nn.Linear({inner}, {x.width})"),
    )
    start = d.pick((f"{x.name}.mean((2, 3))", f"F.adaptive_avg_pool2d({x.name}, 1).flatten(1)",
                    f"{x.name}.amax(dim=(-2, -1))"))  # fmt: skip
    gate = code.temporary(f"torch.sigmoid({b}(F.relu({a}({start}))))")
    return code.value(f"{x.name} * {gate}[:, :, None, None]", x)


@op("map")
def shuffle(code: Code, x: Value, d: Draw, others: list[Value]) -> Value | None:
    groups = [g for g in (2, 3) if x.width % g == 0]
    if not groups:
        return None
    g = d.pick(groups)
    form = d.pick(("nn.functional.channel_shuffle({0}, {1})",
                   "{0}.unflatten(1, ({1}, -1)).transpose(1, 2).flatten(1, 2)",
                   "{0}.view({0}.shape[0], {1}, {2}, *{0}.shape[2:]).transpose(1, 2).contiguous()"
                   ".view({0}.shape[0], -1, *{0}.shape[2:])"))  # fmt: skip
    return code.value(form.format(x.name, g, x.width // g), x)


@op("map signal")
def split_channels(code: Code, x: Value, d: Draw, others: list[Value]) -> Value | None:
    if x.width % 2:
        return None
    half = x.width // 2
    a, b = code.fresh("t"), code.fresh("t")
    code.line(f"{a}, {b} = {d.pick((f'{x.name}.chunk(2, 1)', f'{x.name}.split({half}, dim=1)'))}")
    layer = _convolution(code, d, x.kind, half, half, 3)
    parts = d.pick((f"{a}, {layer}({b})", f"{layer}({a}), {b}", f"{b}, {a}"))
    return code.value(f"torch.cat(({parts}), 1)", x)


@op("map")
def resize(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    target = d.pick([o for o in others if o.kind == "map"])
    mode = d.pick(("mode='nearest'", "mode='bilinear', align_corners=False"))
    size = f"{target.name}.shape[-2:]"
    return code.value(f"F.interpolate({x.name}, size={size}, {mode})", x, space=target.space)


@op("map")
def upsample(code: Code, x: Value, d: Draw, others: list[Value]) -> Value | None:
    if x.space.count("+") > 1:
        return None
    width = d.width()
    resized = (
        f"F.interpolate({x.name}, scale_factor=2)",
        f"{code.layer('nn.Upsample(scale_factor=2)')}({x.name})",
    )
    form = d.pick((
        *resized,
        f"{code.layer(f'nn.ConvTranspose2d({x.width}, {width}, 2, stride=2)')}({x.name})",
        "shuffle",
    ))  # fmt: skip
    new = x.width if form in resized else width
    if form == "shuffle":
        layer = code.layer(f"nn.Conv2d({x.width}, {4 * width}, 1)")
        form = f"F.pixel_shuffle({layer}({x.name}), 2)"
    return code.value(form, x, width=new, space=f"{x.space}+")


@op("map")
def unshuffle(code: Code, x: Value, d: Draw, others: list[Value]) -> Value | None:
    if x.width > 12:
        return None
    form = code.value(f"F.interpolate({x.name}, size=(8, 12))", x, space="fixed8x12")
    return code.value(f"F.pixel_unshuffle({form.name}, 2)", x, width=4 * x.width, space="fixed4x6")


@op("map")
def channels_last_norm(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    layer = code.layer(f"nn.LayerNorm({x.width})")
    a = code.layer(f"nn.Linear({x.width}, {x.width + 4})")
    b = code.layer(f"nn.Linear({x.width + 4}, {x.width})")
    last = code.temporary(f"{x.name}.permute(0, 2, 3, 1)")
    scale = d.pick(("", f"{code.parameter(x.width)} * "))
    inside = code.temporary(f"{scale}{b}(F.gelu({a}({layer}({last}))))")
    return code.value(f"{x.name} + {inside}.permute(0, 3, 1, 2)", x)


@op("map")
def gate_map(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    layer = code.layer(f"nn.Conv2d({x.width}, 1, 1)")
    form = d.pick(("{0} * torch.sigmoid({1}({0}))",
                   "{0} * torch.sigmoid({0}.mean(1, keepdim=True))",
                   "{0} - {0}.mean(1, keepdim=True)",
                   "{0} * {1}({0}).flatten(2).softmax(-1).unflatten(-1, {0}.shape[2:])"
                   ))  # fmt: skip
    return code.value(form.format(x.name, layer), x)


@op("map")
def pad_map(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    layer = code.layer(f"nn.Conv2d({x.width}, {x.width}, 3)")
    mode = d.pick(("", ", mode='reflect'", ", value=0.5", ", mode='replicate'"))
    return code.value(f"{layer}(F.pad({x.name}, (1, 1, 1, 1){mode}))", x)


@op("map signal")
def to_flat(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    if x.kind == "signal":
        form = d.pick(("{0}.mean(-1)", "{0}.amax(2)", "F.adaptive_avg_pool1d({0}, 1).squeeze(-1)"))
    else:
        form = d.pick(("{0}.mean((2, 3))", "F.adaptive_avg_pool2d({0}, 1).flatten(1)",
                       "torch.flatten(F.adaptive_max_pool2d({0}, (1, 1)), 1)",
                       "{0}.flatten(2).mean(-1)",
                       "F.adaptive_avg_pool2d({0}, (2, 3))"))  # fmt: skip
    if form.endswith("(2, 3))") and "adaptive" in form:
        layer = code.layer(f"nn.Linear({6 * x.width}, {x.width})")
        form = f"{layer}(torch.flatten({form}, 1))"
    return code.value(form.format(x.name), x, kind="flat", space="")


@op("map signal")
def to_rows(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    if x.kind == "map":
        form = d.pick(("{0}.flatten(2).transpose(1, 2)", "{0}.permute(0, 2, 3, 1).flatten(1, 2)",
                       "{0}.mean(2).transpose(1, 2)"))  # fmt: skip
    else:
        form = d.pick(("{0}.transpose(1, 2)", "{0}.permute(0, 2, 1).contiguous()", "{0}.mT"))
    return code.value(form.format(x.name), x, kind="rows", space=f"{x.space}.{form[3:9]}")


@op("rows")
def to_signal(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    layer = code.layer(f"nn.Conv1d({x.width}, {x.width}, 3, padding=1)")
    return code.value(f"{layer}({x.name}.transpose(1, 2))", x, kind="signal", space=f"{x.space}^")


@op("rows")
def causal_conv(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    layer = code.layer(f"nn.Conv1d({x.width}, {x.width}, 3, padding=2, groups={x.width})")
    cut = d.pick((f"[..., :{x.name}.shape[1]]", "[:, :, :-2]"))
    return code.value(f"F.silu({layer}({x.name}.transpose(1, 2)){cut}).transpose(1, 2)", x)
