"""The look of the page: inline, for light and dark."""

STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de;
  --card: #f6f8fa; --flow: #6e7781; --old: #c3cad1; --new: #0b6bcb; --warm: #d1570b; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --ink: #e3e7ec; --soft: #9aa4af;
  --line: #3a424b; --card: #1f242a; --flow: #8b949e; --old: #4d5763; --new: #58a6ff;
  --warm: #f0883e; } }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line);
  padding-bottom: .2rem; }
p, figcaption, li, caption { color: var(--soft); }
p { margin: .3rem 0; overflow-wrap: anywhere; }
.scroll { overflow: auto; max-height: 85vh; }
figure { margin: .6rem 0 1rem; }
figcaption { font-size: .87rem; margin-top: .3rem; }
dl { display: flex; flex-wrap: wrap; gap: .5rem; margin: .8rem 0; }
dl div { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .45rem .8rem; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; font-size: 1.05rem; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; font-size: .87rem; margin: .5rem 0; }
caption { text-align: left; padding: .2rem 0; }
th, td { text-align: left; padding: .22rem .8rem .22rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td:not(.number) { min-width: 5rem; }
summary { cursor: pointer; color: var(--soft); font-size: .87rem; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0;
  font-size: .87rem; }
.chip { display: inline-block; width: .85em; height: .85em; border-radius: 3px;
  margin-right: .4em; vertical-align: -.08em; }
.pairs { display: flex; flex-wrap: wrap; gap: .3rem 1.5rem; }
.pairs figure { margin: 0; }
svg { display: block; }
svg text { font: 11px system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif;
  fill: var(--ink); white-space: pre; }
svg text.more, svg text.tick, svg text.edge { fill: var(--soft); }
svg text.label, svg .unit { font-weight: 600; }
figure.scroll { max-width: 100%; }
svg text.hot { fill: var(--page); }
.card { fill: var(--card); stroke: var(--line); }
.flow { fill: none; stroke: var(--flow); stroke-width: 1.2; }
.tip { fill: var(--flow); }
.axis, .grid { fill: none; stroke: var(--line); }
.before { fill: var(--old); }
.after, .heat { fill: var(--new); }
.error { stroke: var(--ink); stroke-width: 1.4; }
.gone { fill: none; stroke: var(--warm); stroke-width: 1.6; }
path.each { fill: none; stroke: var(--old); }
path.even { fill: none; stroke: var(--new); stroke-width: 1.8; }
path.valid { fill: none; stroke: var(--warm); stroke-width: 1.4; }
circle.valid { fill: var(--warm); }
"""
