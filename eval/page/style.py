"""The report's style sheet: one column, system fonts, light and dark from the reader's own setting."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #faf9f6; --card: #ffffff; --ink: #1d2230; --soft: #5c6373; --faint: #8b92a1; --line: #e6e3dc;
  --accent: #b8660b; --accent-soft: #f0c78b; --blue: #2f62b5; --good: #1f7a4d; --good-bg: #e3f3ea;
  --bad: #b3352c; --bad-bg: #fae7e4; --chip: #f1efe9;
  --shadow: 0 1px 2px rgb(30 25 10 / .06), 0 6px 20px rgb(30 25 10 / .05);
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161c; --card: #1c1f27; --ink: #e8e6e1; --soft: #a4a9b6; --faint: #787f8e; --line: #2c303b;
    --accent: #f0a63c; --accent-soft: #7a5623; --blue: #82aef5; --good: #63cf96; --good-bg: #173326;
    --bad: #f08a80; --bad-bg: #3d201e; --chip: #262a34; --shadow: none;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 1040px; margin: 0 auto; padding: 44px 24px 64px; }
header { display: flex; gap: 18px; align-items: center; margin-bottom: 30px; }
header svg { width: 54px; height: 54px; flex: none; }
h1 {
  font-size: 1.9rem; line-height: 1.15; letter-spacing: -.02em; margin: 0; font-weight: 680;
  overflow-wrap: anywhere;
}
h2 { font-size: 1.3rem; letter-spacing: -.01em; margin: 52px 0 6px; }
h3 { font-size: 1rem; margin: 26px 0 8px; }
p { margin: 6px 0 14px; max-width: 76ch; }
.sub { color: var(--soft); margin: 3px 0 0; }
.note { color: var(--soft); font-size: .92rem; }
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 20px 22px;
  box-shadow: var(--shadow);
}
.card + .card { margin-top: 16px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: 12px; margin: 18px 0; }
.figure { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 13px 16px; }
.figure b {
  display: block; font-size: 1.45rem; font-weight: 650; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums;
}
.figure span { color: var(--soft); font-size: .8rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 5px 22px; margin: 0; font-size: .92rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 12.5px; font-family: inherit; font-variant-numeric: tabular-nums; }
svg .name { fill: var(--ink); font-size: 13.5px; }
svg .strong .name, svg .strong .value { font-weight: 680; }
svg .value { fill: var(--ink); font-size: 13.5px; }
svg .label { fill: var(--soft); }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .axis { stroke: var(--faint); stroke-width: 1; }
svg .curve { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke: var(--accent); }
svg .faint { stroke: var(--accent-soft); stroke-width: 1; opacity: .75; }
svg .span { fill: var(--accent-soft); }
svg .dot { fill: var(--accent); stroke: var(--card); stroke-width: 1.5; }
svg .majority { stroke: var(--blue); stroke-width: 2.4; stroke-linecap: round; }
svg .chance { fill: none; stroke: var(--faint); stroke-width: 1.6; }
svg .hover { fill: transparent; } svg .bar:hover .hover { fill: var(--chip); }
.legend {
  display: flex; flex-wrap: wrap; gap: 6px 20px; font-size: .87rem; color: var(--soft); margin: 0 0 10px;
  padding: 0; list-style: none;
}
.legend i { display: inline-block; vertical-align: -1px; margin-right: 7px; }
.legend .k-dot { width: 11px; height: 11px; border-radius: 50%; background: var(--accent); }
.legend .k-span { width: 24px; height: 8px; border-radius: 4px; background: var(--accent-soft); vertical-align: 1px; }
.legend .k-majority { width: 3px; height: 15px; border-radius: 2px; background: var(--blue); vertical-align: -3px; }
.legend .k-chance { width: 10px; height: 10px; border-radius: 50%; border: 2px solid var(--faint); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; font-variant-numeric: tabular-nums; }
th {
  text-align: right; color: var(--soft); font-weight: 550; padding: 6px 8px;
  border-bottom: 1px solid var(--line); white-space: nowrap;
}
td { text-align: right; padding: 5px 8px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr:last-child td { border-bottom: 0; }
tr.mean td { font-weight: 650; }
details { margin-top: 16px; }
summary { cursor: pointer; font-weight: 600; }
details > * + * { margin-top: 14px; }
.grid-cards {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 16px; margin-top: 16px;
}
.item {
  background: var(--card); border: 1px solid var(--line); border-radius: 14px; overflow: hidden;
  box-shadow: var(--shadow); display: flex; flex-direction: column;
}
.item img {
  width: 100%; aspect-ratio: 1; object-fit: contain; background: #fff; border-bottom: 1px solid var(--line);
}
.item .no-image {
  aspect-ratio: 1; display: grid; place-items: center; text-align: center; padding: 20px;
  color: var(--faint); background: var(--chip); font-size: .85rem;
}
.item .body { padding: 12px 14px 14px; display: flex; flex-direction: column; gap: 7px; font-size: .88rem; flex: 1; }
.item .top { display: flex; justify-content: space-between; gap: 8px; align-items: center; }
.chip {
  background: var(--chip); color: var(--soft); border-radius: 99px; padding: 1px 9px; font-size: .75rem;
  white-space: nowrap;
}
.mark { border-radius: 99px; padding: 1px 9px; font-size: .75rem; font-weight: 620; white-space: nowrap; }
.right { color: var(--good); background: var(--good-bg); }
.wrong { color: var(--bad); background: var(--bad-bg); }
.part { color: var(--accent); background: var(--chip); }
.item .question {
  margin: 0; line-height: 1.4; max-height: 17em; overflow: auto; white-space: pre-line;
  overflow-wrap: anywhere;
}
.item dl { gap: 2px 12px; font-size: .86rem; margin-top: auto; }
.item dd {
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .82rem;
  white-space: pre-line; max-height: 6.2em; overflow: auto;
}
.empty { color: var(--faint); font-style: italic; font-family: inherit; }
.kept { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 14px; }
.kept figure { margin: 0; width: 150px; font-size: .78rem; color: var(--soft); }
.kept img { width: 150px; border: 1px solid var(--line); border-radius: 8px; }
.kept figcaption { overflow-wrap: anywhere; line-height: 1.45; }
h4 { font-size: .92rem; margin: 20px 0 4px; }
.scene { display: flex; flex-direction: column; gap: 4px; }
.scene dd { white-space: pre-line; }
.scene .figures { margin: 14px 0 6px; }
.scene .figure b { font-size: 1.1rem; overflow-wrap: anywhere; }
table.views { width: auto; }
.views th, .views td { border: 0; text-align: center; padding: 3px 4px; }
.views tbody th { text-align: left; padding-right: 10px; }
.views img { display: block; width: 168px; border-radius: 6px; background: var(--chip); }
.scale { max-width: 520px; margin-top: 12px; }
.scale + .note { margin-top: 2px; }
.ramp { height: 12px; border-radius: 6px; print-color-adjust: exact; }
.marks { position: relative; height: 1.3em; font-size: .78rem; color: var(--soft); font-variant-numeric: tabular-nums; }
.marks span { position: absolute; transform: translateX(-50%); }
.clouds { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px; }
.clouds figure, .gates figure { margin: 0; font-size: .8rem; color: var(--soft); }
.gates { display: flex; flex-wrap: wrap; gap: 18px; align-items: flex-start; }
.gates img { display: block; width: 224px; border-radius: 6px; image-rendering: pixelated; }
.gates > div { flex: 1; min-width: 240px; }
svg .space { fill: var(--chip); }
svg .camera { fill: none; stroke: var(--accent); stroke-width: 1.6; stroke-linejoin: round; }
footer { color: var(--faint); font-size: .85rem; margin-top: 56px; }
@media (max-width: 640px) { .clouds { grid-template-columns: 1fr; } .card { padding: 14px 12px; } }
@media print { .card, .item, .figure { box-shadow: none; break-inside: avoid; } }
"""

MARK = (
    '<svg viewBox="0 0 48 48" aria-hidden="true"><circle cx="24" cy="24" r="22" fill="none" stroke="currentColor" '
    'stroke-width="2.5"/><path d="M24 24 L24 8 L40 30 Z" fill="var(--accent)"/><circle cx="24" cy="24" r="2.6" '
    'fill="currentColor"/></svg>'
)
"""A sundial, seen from above."""
