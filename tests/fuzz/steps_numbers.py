"""Steps on the numbers of channels themselves: counts, ranges, factories, windows, merged axes."""

from __future__ import annotations

from tests.fuzz.program import Code, Draw, Value, op


@op("flat rows")
def counted(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """Numbers made of how many channels there are, or of which one each is."""
    w = x.width
    form = d.pick((
        "{0} * {0}.shape[-1] ** -0.5", "{0}.sum(-1, keepdim=True) / {0}.size(-1) + {0}",
        f"{{0}} * torch.arange({w}, dtype={{0}}.dtype) * 0.1",
        "{0} * torch.arange({0}.shape[-1]) * 0.1",
        f"{{0}} * (torch.arange({w}) % 2)", f"{{0}} @ torch.eye({w}, dtype={{0}}.dtype)",
        f"{{0}} @ torch.ones({w}, {w}, dtype={{0}}.dtype).triu() * 0.2",
        f"{{0}} * torch.ones({w}, dtype={{0}}.dtype).cumsum(0) * 0.2",
        f"{{0}} + torch.full(({w},), 0.5, dtype={{0}}.dtype)", "{0} + torch.zeros_like({0})",
        f"{{0}} * (torch.arange({w}) < {1 + d.below(w - 1)})", "{0} + {0}.new_ones({0}.shape[-1])",
        f"torch.where(torch.arange({w}) > {d.below(w)}, {{0}}, {{0}} * 0.5)",
        f"F.one_hot(torch.arange({w}), {w}).to({{0}}.dtype).mul({{0}}.unsqueeze(-1)).sum(-1)",
        f"{{0}} * torch.linspace(0.1, 1.0, {w}, dtype={{0}}.dtype).flip(0)",
        "{0} * {0}.mean()", "{0} / (1.0 + {0}.std())", "{0} - {0}.max()",
        "{0} + {0}.numel() * 0.001",
    ))  # fmt: skip
    return code.value(form.format(x.name), x)


@op("flat rows")
def factory(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """Memory made here and filled by pieces."""
    w = x.width
    k = 2 + d.below(w - 3)
    own = code.temporary(d.pick(("torch.zeros_like({0})", "{0}.new_zeros({0}.shape)",
                                 f"torch.zeros(*{{0}}.shape[:-1], {w}, dtype={{0}}.dtype)",
                                 "torch.empty_like({0}).zero_()",
                                 "torch.full_like({0}, 0.5)")).format(x.name))  # fmt: skip
    lines = d.pick((
        ("{1}[..., :{2}] = {0}[..., :{2}]", "{1}[..., {2}:] = {0}[..., {2}:].tanh()"),
        ("{1}[..., {2}:] = {0}[..., {2}:] * 2.0",), ("{1} += {0}", "{1}[..., :{2}].mul_(0.5)"),
        ("{1}.copy_({0})", "{1}[..., 0] = {0}[..., 1]"), ("{1}[:] = {0}",),
        ("{1}[..., ::2] = {0}[..., ::2]",), ("{1}[:, :1] = {0}[:, :1]", "{1} += 0.5 * {0}"),
        ("{1}[..., :{2}].copy_({0}[..., -{2}:])",),
    ))  # fmt: skip
    for line in lines:
        code.line(line.format(x.name, own, k))
    return code.value(d.pick((own, f"{x.name} + {own}")), x)


@op("rows")
def merged(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """Batch and length as one axis, or windows of the length."""
    width = d.width()
    layer = code.layer(f"nn.Linear({x.width}, {width})")
    flat = f"{x.name}.flatten(0, 1)"
    norm = f"{code.layer(f'nn.BatchNorm1d({width})')}({layer}({flat}))"
    form, made, same = d.pick((
        (f"{layer}({flat}).unflatten(0, {x.name}.shape[:2])", width, True),
        (f"{layer}({flat}).view({x.name}.shape[0], -1, {width})", width, True),
        (f"{norm}.view({x.name}.shape[0], {x.name}.shape[1], {width})", width, True),
        ("{0}.unfold(1, 3, 1).mean(-1)", x.width, False),
        ("{0}.unfold(1, 2, 2).flatten(2)", 2 * x.width, False),
        ("{0}.transpose(0, 1).reshape({0}.shape[1], -1, {1}).transpose(0, 1)", x.width, True),
        ("{0}.transpose(1, 2).reshape({0}.shape[0] * {1}, -1).view({0}.shape[0], {1}, -1).mT",
         x.width, True),
        ("F.layer_norm({0}, {0}.shape[-1:])", x.width, True),
        ("F.layer_norm({0}, ({1},), {2}, {2})", x.width, True),
    ))  # fmt: skip
    code.keeps |= form.startswith(norm)
    text = form.format(x.name, x.width, code.parameter(x.width))
    return code.value(text, x, width=made, space=x.space if same else code.fresh("T"))


@op("flat rows")
def pairs(code: Code, x: Value, d: Draw, others: list[Value]) -> Value | None:
    """Products of two values."""
    if x.width > 16:
        return None
    a, k = code.layer(f"nn.Linear({x.width}, 5)"), 5
    lead = "b" if x.kind == "flat" else "bt"
    form, made = d.pick((
        (f"({{0}}.unsqueeze(-1) * {a}({{0}}).unsqueeze(-2)).flatten(-2)", x.width * k),
        (f"torch.einsum('{lead}i,{lead}j->{lead}ij', {{0}}, {a}({{0}})).flatten(-2)", x.width * k),
        (f"torch.einsum('{lead}i,{lead}j->{lead}ij', {{0}}, {a}({{0}})).sum(-2)", k),
        (f"torch.einsum('{lead}i,{lead}j,ijk->{lead}k', {{0}}, {a}({{0}}), "
         f"{code.parameter(x.width, k, 6)}) * 0.2", 6),
        (f"{code.layer(f'nn.Bilinear({x.width}, 5, 7)')}({{0}}, {a}({{0}}))", 7),
        (f"torch.cdist({{0}}.unsqueeze(-2), {code.parameter(6, x.width)}).squeeze(-2)", 6),
        (f"({{0}}.unsqueeze(-2) * {code.parameter(6, x.width)}).sum(-1)", 6),
        (f"({{0}}.unsqueeze(-2) - {code.parameter(6, x.width)}).square().mean(-1)", 6),
        ("({0}.unsqueeze(-1) * {0}.unsqueeze(-2)).softmax(-1).matmul({0}.unsqueeze(-1))"
         ".squeeze(-1)",
         x.width),
    ))  # fmt: skip
    return code.value(form.format(x.name), x, width=made)


@op("flat rows")
def two_readers(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """Two layers read parts of one value; the parts may overlap."""
    k, end = 2 + d.below(x.width - 3), d.pick((0, 1))
    a = code.layer(f"nn.Linear({k}, 6)")
    b = code.layer(f"nn.Linear({x.width - k + end}, 6)")
    tail = f"[..., {k - end}:]"
    return code.value(f"{a}({x.name}[..., :{k}]) + {b}({x.name}{tail}).tanh()", x, width=6)


@op("rows")
def torch_decoder(code: Code, x: Value, d: Draw, others: list[Value]) -> Value | None:
    if x.width % 2:
        return None
    code.drops = True
    memory = d.pick([o for o in others if o.kind == "rows"])
    to = code.layer(f"nn.Linear({memory.width}, {x.width})")
    layer = code.layer(
        f"nn.TransformerDecoderLayer({x.width}, 2, {d.width()}, 0.1, batch_first=True)"
    )
    mask = d.pick(("", ", tgt_mask=nn.Transformer.generate_square_subsequent_mask("
                   f"{x.name}.shape[1])",
                   f", tgt_key_padding_mask={x.name}[..., 0] > 0.7"))  # fmt: skip
    return code.value(f"{layer}({x.name}, {to}({memory.name}){mask})", x)


@op("rows")
def masked_encoder(code: Code, x: Value, d: Draw, others: list[Value]) -> Value | None:
    """``nn.TransformerEncoder`` or ``nn.MultiheadAttention`` with masks."""
    if x.width % 2:
        return None
    code.drops = True
    length = f"{x.name}.shape[1]"
    causal = f"torch.full(({length}, {length}), float('-inf')).triu(1)"
    hidden = f"({x.name}[..., 0] > 0.7)"
    layer = code.layer(f"nn.MultiheadAttention({x.width}, 2, batch_first=True)")
    stack = code.layer(
        f"nn.TransformerEncoder(nn.TransformerEncoderLayer({x.width}, 2, {d.width()}, "
        "batch_first=True, norm_first=True), 2, enable_nested_tensor=False)"
    )
    form = d.pick((f"{layer}({{0}}, {{0}}, {{0}}, attn_mask={causal})[0]",
                   f"{layer}({{0}}, {{0}}, {{0}}, key_padding_mask={hidden})[0]",
                   f"{{0}} + {layer}({{0}}, {{0}}, {{0}}, average_attn_weights=False)[0]",
                   f"{stack}({{0}}, mask={causal}, is_causal=True)", f"{stack}({{0}})",
                   f"{stack}({{0}}, src_key_padding_mask={hidden})"))  # fmt: skip
    return code.value(form.format(x.name), x)


@op("rows")
def cells(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """A recurrent cell in a loop over the length, which fixes it."""
    width = d.pick((6, 8))
    kind = d.pick(("GRUCell", "RNNCell", "LSTMCell"))
    cell = code.layer(f"nn.{kind}({x.width}, {width})")
    state = code.temporary(f"{x.name}.new_zeros({x.name}.shape[0], {width})")
    other = code.temporary(f"{x.name}.new_zeros({x.name}.shape[0], {width})")
    made = code.temporary("[]")
    code.line(f"for t in range({x.name}.shape[1]):")
    if kind == "LSTMCell":
        code.line(f"    {state}, {other} = {cell}({x.name}[:, t], ({state}, {other}))")
    else:
        code.line(f"    {state} = {cell}({x.name}[:, t], {state})")
    code.line(f"    {made}.append({state})")
    return code.value(f"torch.stack({made}, 1)", x, width=width)


@op("rows")
def scattered(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """Rows sorted, gathered and scattered."""
    form = d.pick((
        "torch.zeros_like({0}).index_add(1, torch.arange({0}.shape[1]) // 2, {0})",
        "torch.zeros_like({0}).scatter_add(1, (torch.arange({0}.shape[1]) // 2)[None, :, None]"
        ".expand_as({0}), {0})",
        "{0}.gather(1, {0}[..., :1].argsort(1).expand_as({0}))",
        "{0}.take_along_dim({0}[..., :1].argsort(1), 1)",
        "{0}.index_select(1, torch.arange({0}.shape[1]).flip(0))",
        "{0}[:, torch.arange({0}.shape[1]).roll(1)]",
        "{0}.topk(2, dim=1).values.sum(1, keepdim=True) + {0}", "{0}.sort(1).values",
        "{0} + {0}.median(1, keepdim=True).values",
        "{0}.index_fill(1, torch.tensor([0]), 0.5)",
    ))  # fmt: skip
    return code.value(form.format(x.name), x)


@op("flat rows")
def wrapped(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """Regions and transforms of torch."""
    layer = code.layer(
        f"nn.Sequential(nn.Linear({x.width}, 10), nn.GELU(), nn.Linear(10, {x.width}))"
    )
    form = d.pick((
        f"torch.utils.checkpoint.checkpoint({layer}, {{0}}, use_reentrant=False)",
        f"torch.cond({{0}}.sum() > 0, {layer}, torch.tanh, ({{0}},))",
        f"{layer}({{0}}.double().float().to({{0}}.dtype))",
        "torch.view_as_real(torch.view_as_complex({0}[..., :4].float().contiguous()"
        ".unflatten(-1, (2, 2))) * "
        f"(0.5 + 0.5j)).flatten(-2).to({{0}}.dtype).sum(-1, keepdim=True) + {layer}({{0}})",
        f"{layer}({{0}}).clone(memory_format=torch.contiguous_format)",
        f"torch.utils.checkpoint.checkpoint({layer}, {{0}}, use_reentrant=False) + {{0}}",
    ))  # fmt: skip
    return code.value(form.format(x.name), x)


@op("flat rows")
def normed_layers(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """Weights that are computed by torch's own parametrisations, and layers that are one."""
    inner = d.width()
    a = code.layer(f"nn.Linear({x.width}, {inner})")
    b = code.layer(f"nn.Linear({inner}, {x.width})")
    forms = (
        f"{a} = nn.utils.parametrizations.spectral_norm({a})",
        f"{b} = nn.utils.parametrizations.weight_norm({b})",
        f"{a} = nn.utils.parametrizations.weight_norm({a}, dim=1)",
        f"{a} = nn.utils.weight_norm({a})", f"{b}.weight = nn.Parameter({a}.weight.detach().t())",
        f"{b}.weight.requires_grad_(False)", f"{b}.bias = None",
        f"{a}.register_forward_hook(lambda m, i, o: o * 0.5)",
        f"{a}.register_forward_pre_hook(lambda m, i: (i[0] * 2.0,))",
    )  # fmt: skip
    chosen = d.pick(forms)
    code.keeps |= "spectral" in chosen
    code.init.append(chosen)
    return code.value(f"{b}(F.relu({a}({x.name})))", x)


@op("flat rows")
def tied(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """One parameter in two modules."""
    inner = d.width()
    a, b = (code.layer(f"nn.Linear({x.width}, {inner})") for _ in "ab")
    c = code.layer(f"nn.Linear({inner}, {x.width})")
    code.init.append(d.pick((f"{b}.weight = {a}.weight", f"{b} = {a}", f"{b}.bias = {a}.bias",
                             f"{b}.weight, {b}.bias = {a}.weight, {a}.bias")))  # fmt: skip
    form = d.pick(("{2}(torch.tanh({0}({3})) + {1}({3}).relu())", "{2}({0}({3}) * {1}(-{3}))",
                   "{2}({0}({3})) + {2}({1}({3} * 2.0)).tanh()"))  # fmt: skip
    return code.value(form.format(a, b, c, x.name), x)


@op("map")
def sampled(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    """Pictures moved, folded and pooled with places."""
    size = f"{x.name}.shape[-2:]"
    form = d.pick((
        "F.grid_sample({0}, F.affine_grid(torch.tensor([[[0.9, 0.1, 0.0], [-0.1, 0.9, 0.0]]])"
        ".expand({0}.shape[0], -1, -1).to({0}.dtype), {0}.shape, align_corners=False), "
        "align_corners=False)",
        "{0}.rot90(2, (2, 3))", "{0}.flip(3)", "{0}.roll((1, 2), (2, 3))", "{0}.cumsum(2) * 0.2",
        "F.interpolate(F.max_pool2d({0}, 2), size={1})",
        "F.interpolate(F.adaptive_avg_pool2d({0}, (3, 2)), size={1}, mode='bilinear')",
        "F.avg_pool2d(F.pad({0}, (1, 1, 1, 1), mode='circular'), 3, 1)",
        "F.lp_pool2d(F.pad({0}.abs(), (1, 1, 1, 1)), 2, 3, 1)", "{0} * {0}.flatten(1).softmax(1)"
        ".view({0}.shape) * 50.0", "F.local_response_norm({0}, 3)", "F.softmax({0}, 1) * 5.0",
        "F.normalize({0}, dim=1)", "{0} - {0}.amax(1, keepdim=True)",
        "torch.einsum('bchw,bdhw->bcd', {0}, {0}).softmax(-1).matmul({0}.flatten(2))"
        ".view({0}.shape)",
    ))  # fmt: skip
    return code.value(form.format(x.name, size), x)


@op("map")
def batched_groups(code: Code, x: Value, d: Draw, others: list[Value]) -> Value | None:
    """Groups of channels moved into the batch."""
    if x.width % 2:
        return None
    half = x.width // 2
    layer = code.layer(f"nn.Conv2d({half}, {half}, 3, padding=1)")
    form = d.pick(("{1}({0}.reshape(-1, {2}, *{0}.shape[2:])).reshape({0}.shape)",
                   "{1}({0}.unflatten(1, (2, {2})).flatten(0, 1)).unflatten(0, (-1, 2))"
                   ".flatten(1, 2)",
                   "torch.cat([{1}(part) for part in {0}.chunk(2, 1)], 1)"))  # fmt: skip
    return code.value(form.format(x.name, layer, half), x)


@op("map")
def transposed(code: Code, x: Value, d: Draw, others: list[Value]) -> Value:
    groups = 2 if x.width % 2 == 0 else 1
    options = d.pick(("3, padding=1", f"3, padding=1, groups={groups}", "1, bias=False"))
    width = 2 * d.pick((3, 4, 5))
    layer = code.layer(f"nn.ConvTranspose2d({x.width}, {width}, {options})")
    return code.value(f"{layer}({x.name})", x, width=width)
