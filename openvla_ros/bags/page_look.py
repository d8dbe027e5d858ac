"""How a page looks and what its keys do. Text only: it travels inside the page, which loads nothing."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ground: #f6f7f9; --card: #fff; --ink: #1d242c; --soft: #5b6674; --rule: #dde2e8;
  --recorded: #5b6472; --predicted: #d1495b; --sent: #2271c3; --against: #0e8f7e; --fault: #c77d0a; --good: #1e8e5a; --bad: #c62f45;
  --policy: #d9a7af; --human: #8fc0ea; --hold: #cfd5dc; --stopped: #e0a04a; --plain: #cddbe6; }
@media (prefers-color-scheme: dark) { :root { --ground: #12161b; --card: #1a2027; --ink: #e7ecf2; --soft: #9aa7b5; --rule: #2e3742;
  --recorded: #aab5c1; --predicted: #ff7b8a; --sent: #6cb2f5; --against: #43d0bd; --fault: #f0b04f; --good: #4ac98b; --bad: #ff7285;
  --policy: #7d3c47; --human: #2d5f8d; --hold: #39434f; --stopped: #8a5a17; --plain: #32424f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1320px; margin: 0 auto; padding: 28px 24px 80px; }
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 40px 0 12px; } h3 { font-size: 15px; margin: 22px 0 8px; overflow-wrap: anywhere; }
p { margin: 6px 0; } .soft { color: var(--soft); } small { font-size: 13px; }
a { color: var(--sent); } :focus-visible { outline: 3px solid var(--sent); outline-offset: 2px; border-radius: 4px; }
.skip { position: absolute; left: -999px; } .skip:focus { left: 12px; top: 12px; background: var(--card); padding: 6px 12px; }
.verdict { display: inline-block; padding: 3px 12px; border-radius: 999px; font-weight: 650; color: #fff; background: var(--soft); }
.verdict.passed { background: #1e8e5a; } .verdict.failed { background: #c62f45; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 10px 16px; min-width: 118px; }
.tile b { display: block; font-size: 23px; font-weight: 620; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile.bad b { color: var(--bad); } .tile span { color: var(--soft); font-size: 13px; }
.note { border-left: 4px solid var(--fault); background: var(--card); padding: 8px 14px; margin: 8px 0; border-radius: 0 8px 8px 0; }
.note.bad { border-color: var(--bad); }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: 3px 10px; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--soft); font-weight: 550; font-size: 13px; } tr > :first-child { text-align: left; }
td.words { text-align: left; white-space: normal; }
.frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(390px, 100%), 1fr)); gap: 16px; padding: 0; list-style: none; }
.frames li { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; overflow: hidden;
  display: flex; flex-direction: column; }
.frames .words { padding: 10px 14px 12px; } .frames table { font-size: 12px; margin-top: 6px; }
.frames th { font-size: 12px; } .frames td, .frames th { padding: 1px 3px; }
.reason { display: inline-block; border: 1px solid var(--fault); border-radius: 6px; padding: 0 7px; margin: 2px 4px 2px 0; font-size: 13px;
  overflow-wrap: anywhere; } .reason.bad { border-color: var(--bad); color: var(--bad); }
.zoom { display: block; width: 100%; padding: 0; border: 0; background: #0b0e11; cursor: zoom-in; position: relative; }
.zoom img, .zoom svg { display: block; width: 100%; height: auto; } .zoom svg { position: absolute; inset: 0; height: 100%; }
.nothing { background: repeating-linear-gradient(45deg, var(--rule) 0 8px, transparent 8px 16px); min-height: 150px; display: grid;
  place-items: center; }
.nothing span { background: var(--card); padding: 4px 12px; border-radius: 6px; max-width: 85%; font-size: 13px; }
dialog { border: 0; padding: 0; background: transparent; width: min(96vw, 1200px); } dialog::backdrop { background: #000c; }
dialog .zoom { cursor: zoom-out; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(310px, 100%), 1fr)); gap: 12px; }
.panels figure { margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 8px 10px 4px; }
figcaption { display: flex; justify-content: space-between; gap: 8px; font-weight: 600; min-height: 23px; }
figcaption output, figcaption span { font-weight: 400; font-size: 12.5px; color: var(--soft); text-align: right; }
svg text { fill: var(--soft); font: 11px system-ui, "DejaVu Sans", sans-serif; } svg { display: block; width: 100%; }
svg .inside { fill: var(--ink); } .grid { stroke: var(--rule); stroke-width: .7; }
.zero { stroke: var(--soft); stroke-width: .8; opacity: .7; }
.line { fill: none; stroke-width: 1.7; stroke-linejoin: round; stroke-linecap: round; } .cursor { stroke: var(--ink); stroke-width: 1; }
.line.recorded { stroke: var(--recorded); stroke-width: 2.6; opacity: .8; } .line.predicted { stroke: var(--predicted); }
.line.sent { stroke: var(--sent); stroke-dasharray: 5 3; }
.line.against { stroke: var(--against); stroke-dasharray: 1.5 3; stroke-width: 2.2; }
.line.total { stroke: var(--soft); } .fault-line { stroke: var(--fault); stroke-width: 2; opacity: .55; }
.bars { fill: var(--predicted); opacity: .65; } .bars.against, .outline.against { stroke: var(--against); }
.bars.against { fill: var(--against); stroke: none; } .outline { fill: none; stroke-width: 1.6; }
.bar { fill: var(--sent); opacity: .75; } .whisker { stroke: var(--soft); stroke-width: 2; }
.ground { fill: var(--rule); opacity: .45; } .span.policy { fill: var(--policy); } .span.human { fill: var(--human); }
.span.hold { fill: var(--hold); }
.span.stopped { fill: var(--stopped); } .span.plain { fill: var(--plain); } .span.odd { fill: var(--hold); }
.span.fault { fill: var(--fault); }
.span.rule { fill: var(--sent); } .span.differs { fill: var(--bad); } .strip { min-width: 640px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; color: var(--soft); font-size: 13.5px; }
.legend span { display: inline-flex; align-items: center; gap: 6px; } .legend svg { width: 30px; }
.overlay text { fill: #dfe6ee; font-size: 10.5px; } .plate { fill: #0b0e11; opacity: .72; }
.ring { fill: none; stroke: #dfe6ee; stroke-width: .8; opacity: .55; }
.arrow, .level { fill: none; stroke-width: 2.6; stroke-linecap: round; stroke-linejoin: round; }
.level { stroke-width: 3; stroke-linecap: butt; }
.halo { fill: none; stroke: #0b0e11; stroke-width: 5; opacity: .5; stroke-linecap: round; stroke-linejoin: round; }
.tool { fill: none; stroke: #fff; stroke-width: 2; }
.arrow.recorded, .level.recorded { stroke: #e8edf3; } .arrow.predicted, .level.predicted { stroke: #ff6577; }
.arrow.sent, .level.sent { stroke: #5db0ff; } .arrow.sent { stroke-width: 5; } .arrow.against, .level.against { stroke: #35d6bf; }
.fill.recorded, .rest.recorded { fill: #e8edf3; } .fill.predicted, .rest.predicted { fill: #ff6577; }
.fill.sent, .rest.sent { fill: #5db0ff; } .fill.against, .rest.against { fill: #35d6bf; }
.key { font-weight: 600; } .key.recorded { color: var(--recorded); } .key.predicted { color: var(--predicted); }
.key.sent { color: var(--sent); } .key.against { color: var(--against); }
details summary { cursor: pointer; } nav a { margin-right: 14px; }
@media print { .frames li, .panels figure { break-inside: avoid; } }
"""

SCRIPT = """
'use strict';
const show = document.querySelector('dialog');
for (const button of document.querySelectorAll('.frames .zoom')) button.addEventListener('click', () => {
  const copy = button.cloneNode(true);
  copy.setAttribute('aria-label', 'close');
  copy.addEventListener('click', () => show.close());
  show.replaceChildren(copy);
  show.showModal();
});
for (const track of document.querySelectorAll('.track')) {
  const data = JSON.parse(track.querySelector('script').textContent);
  const panels = [...track.querySelectorAll('figure[data-column]')];
  const [width, left, right] = [%(width)d, %(left)d, %(right)d];
  const span = Math.max(1e-9, data.time_s.at(-1) - data.time_s[0]);
  const number = value => value === null ? '-' : String(Number(value.toPrecision(3)));
  let place = -1;
  const move = to => {
    place = Math.max(0, Math.min(data.time_s.length - 1, to));
    const x = left + (width - left - right) * (data.time_s[place] - data.time_s[0]) / span;
    for (const panel of panels) {
      const line = panel.querySelector('.cursor');
      line.setAttribute('x1', x);
      line.setAttribute('x2', x);
      const column = Number(panel.dataset.column);
      const said = Object.entries(data.series).filter(([name, values]) => values[column]);
      panel.querySelector('output').textContent = `#${data.index[place]}  `
        + said.map(([name, values]) => `${name} ${number(values[column][place])}`).join('  ');
    }
  };
  track.addEventListener('keydown', event => {
    const steps = {ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9}[event.key];
    if (steps === undefined || event.target !== track) return;
    event.preventDefault();
    move(place + steps);
  });
  for (const panel of panels) panel.addEventListener('pointermove', event => {
    const box = panel.querySelector('svg').getBoundingClientRect();
    const at = data.time_s[0] + span * ((event.clientX - box.left) / box.width * width - left) / (width - left - right);
    let best = 0;
    data.time_s.forEach((time, number) => { if (Math.abs(time - at) < Math.abs(data.time_s[best] - at)) best = number; });
    move(best);
  });
}
"""
