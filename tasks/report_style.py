"""The report's one style sheet: light and dark, laptop and phone, one accent colour. A string and nothing else."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fcfcfa; --ink: #1a1d21; --soft: #5d646e; --line: #e2e2dc; --wash: #f3f3ee;
  --accent: #0a6c5f; --accent-wash: #d9ece6; --bar: #b4b9c0; --heat: 10, 108, 95;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", Georgia, "Liberation Serif", serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "Liberation Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #131519; --ink: #e6e6e1; --soft: #9aa1ab; --line: #2c3037; --wash: #1b1e23;
    --accent: #55c9b0; --accent-wash: #17352f; --bar: #565d68; --heat: 85, 201, 176;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--sans); }
main { max-width: 1080px; margin: 0 auto; padding: 4.5rem 2rem 5rem; }
h1, h2 { font-family: var(--serif); font-weight: 600; line-height: 1.15; letter-spacing: -.01em; margin: 0; }
h1 { font-size: clamp(2.1rem, 5.2vw, 3.3rem); text-wrap: balance; }
h2 { font-size: clamp(1.5rem, 3vw, 1.9rem); }
h3 { font-size: 1rem; font-weight: 650; margin: 2.4rem 0 .5rem; }
p { margin: .7rem 0; max-width: 44rem; text-wrap: pretty; }
a { color: var(--accent); text-underline-offset: .15em; }
small { font-size: .8125rem; color: var(--soft); font-weight: 400; }
code, pre { font-family: var(--mono); font-size: .84em; }
code { background: var(--wash); padding: .1em .35em; border-radius: 4px; overflow-wrap: anywhere; }
pre { background: var(--wash); padding: 1rem; border-radius: 8px; overflow: auto; max-height: 26rem; }
section { margin-top: 4.2rem; border-top: 1px solid var(--line); padding-top: 1.8rem; }
.eyebrow { color: var(--soft); font-size: .875rem; margin: 0 0 .9rem; }
.lede { font: 1.3rem/1.5 var(--serif); max-width: 45rem; text-wrap: pretty; margin: 1.3rem 0 0; }
.lede b { color: var(--accent); font-weight: 600; white-space: nowrap; }
.soft { color: var(--soft); }
nav { margin-top: 1.8rem; display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; font-size: .9375rem; }
nav a { text-decoration: none; }
nav a:hover, nav a:focus-visible { text-decoration: underline; }
.two { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0 3.5rem; }

/* one question at the top */
.hero { display: flex; flex-wrap: wrap; gap: .9rem; margin-top: 2.2rem; align-items: flex-start; }
.hero figure { width: 108px; }
.hero figcaption { font-size: .875rem; text-align: center; margin-top: .45rem; }
.hero .drawn img { outline: 3px solid var(--accent); outline-offset: 0; }
.hero .drawn figcaption { color: var(--accent); font-weight: 650; }
.hero .arrow { height: 108px; display: grid; place-items: center; color: var(--soft); font-size: 1.5rem; }
.hero + p { font-size: .875rem; }

/* bars and dots: a name, a track from 0 to 100 %, a value */
.chart { margin: 1.2rem 0 0; font-variant-numeric: tabular-nums; }
.chart h3 { margin: 0 0 .6rem; }
.row {
  display: grid; grid-template-columns: 8.2rem minmax(0, 1fr) 5.6rem; gap: .9rem; align-items: center;
  padding: .42rem 0;
}
.row .name { line-height: 1.25; font-size: .9375rem; }
.row .name small, .row .value small { display: block; line-height: 1.3; }
.row .value { text-align: right; font-size: 1.0625rem; line-height: 1.2; }
.row.main .name, .row.main .value { font-weight: 650; }
.row.main .value { color: var(--accent); }
.track { position: relative; height: 14px; background: var(--wash); border-radius: 3px; }
.track i { position: absolute; display: block; }
.track .fill { left: 0; top: 0; bottom: 0; background: var(--bar); border-radius: 3px; }
.main .fill { background: var(--accent); }
.track .whisker { top: 6px; height: 2px; background: var(--ink); box-shadow: 0 0 0 1px var(--paper); }
.track .whisker::before, .track .whisker::after {
  content: ""; position: absolute; width: 2px; height: 8px; top: -3px; background: var(--ink);
}
.track .whisker::before { left: 0; } .track .whisker::after { right: 0; }
.track .chance { top: -4px; bottom: -4px; width: 0; border-left: 2px dotted var(--soft); }
.track .range {
  top: 2px; bottom: 2px; background: var(--bar); opacity: .55; border-radius: 3px; min-width: 2px;
}
.track .mean { top: -1px; bottom: -1px; width: 2px; margin-left: -1px; background: var(--ink); }
.main .range { background: var(--accent); opacity: .3; } .main .mean { background: var(--accent); }
.track .dot {
  width: 7px; height: 7px; margin-left: -3.5px; top: 3.5px; border-radius: 50%; background: var(--ink);
  opacity: .62;
}
.main .dot { background: var(--accent); opacity: .9; }
.track .paper {
  width: 9px; height: 9px; margin-left: -4.5px; top: 2.5px; border: 2px solid var(--ink);
  background: var(--paper); transform: rotate(45deg);
}
.axis { font-size: .75rem; color: var(--soft); padding: 0; }
.axis .track { background: none; height: 1.2rem; }
.axis .track span { position: absolute; white-space: nowrap; transform: translateX(-50%); }
.key {
  display: flex; flex-wrap: wrap; gap: .3rem 1.5rem; font-size: .8125rem; color: var(--soft);
  margin: .8rem 0 1.6rem;
}
.key span { display: inline-flex; align-items: center; gap: .5rem; }
.key .track { display: inline-block; width: 34px; background: none; }

/* curves */
.plot {
  position: relative; height: 300px; margin: 1.4rem 4.4rem 2.6rem 2.6rem; font-size: .75rem;
  color: var(--soft); font-variant-numeric: tabular-nums;
}
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.plot path { fill: none; vector-effect: non-scaling-stroke; stroke-linecap: round; stroke-linejoin: round; }
.plot .grid { stroke: var(--line); stroke-width: 1; }
.plot .raw { stroke: var(--bar); stroke-width: 1; opacity: .55; }
.plot .smooth { stroke: var(--soft); stroke-width: 2; }
.plot .held { stroke: var(--accent); stroke-width: 2; }
.plot .smooth.norm0 { stroke: var(--accent); }
.plot .smooth.norm1 { stroke-dasharray: 7 4; }
.plot .smooth.norm2 { stroke-dasharray: 2 4; }
.plot .end.norm0 { color: var(--accent); font-weight: 650; }
.plot .points { stroke: var(--accent); stroke-width: 7; }
.plot span { position: absolute; line-height: 1; white-space: nowrap; }
.plot .y { right: calc(100% + .6rem); transform: translateY(-50%); }
.plot .x { top: calc(100% + .6rem); transform: translateX(-50%); }
.plot .end {
  left: calc(100% + .6rem); transform: translateY(-50%); line-height: 1.15; white-space: normal;
  width: 4.2rem;
}
.plot .end.held { color: var(--accent); font-weight: 650; }
.plot .limit { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 5; }
.plot .channels { stroke: var(--soft); stroke-width: 3; }
.plot .outliers { stroke: var(--accent); stroke-width: 8; }
.plot .out { transform: translate(.5rem, -50%); color: var(--accent); font-weight: 650; }
.plot .out.left { transform: translate(calc(-100% - .5rem), -50%); }

/* tables */
.scroll { overflow-x: auto; margin: 1.1rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 650; font-size: 1rem; padding-bottom: .5rem; }
th, td {
  padding: .42rem .6rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: baseline;
}
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
thead th {
  color: var(--soft); font-weight: 500; font-size: .8125rem; line-height: 1.25; vertical-align: bottom;
}
tbody th { font-weight: 500; white-space: nowrap; }
th small, td small { display: block; white-space: nowrap; line-height: 1.25; }
.last-mean tbody tr:last-child > * { font-weight: 650; border-bottom: 0; }
.costs tbody th { white-space: normal; }
.costs td:last-child, .costs th:last-child { text-align: left; padding-left: 1.2rem; }
.metered { white-space: nowrap; }
.meter {
  display: inline-block; vertical-align: middle; width: 3.4rem; height: 8px; margin-right: .7rem;
  background: var(--wash); border-radius: 2px;
}
.meter i { display: block; height: 100%; background: var(--accent); border-radius: 2px; }
.heat td, .heat tbody th { padding: 2px; border: 0; }
.tint { display: block; padding: .35rem .6rem; border-radius: 4px; }
.tint small { line-height: 1.2; color: inherit; opacity: .75; }
.heat { table-layout: fixed; min-width: 52rem; }
.heat th:first-child { width: 7.5rem; }
.words th, .words td { text-align: left; }
.words code, .words time { white-space: nowrap; }

/* questions and pictures */
.cards {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(312px, 1fr)); gap: 1.1rem;
  margin-top: 1.4rem;
}
.cards + p { margin-top: 1.8rem; }
.card { border: 1px solid var(--line); border-radius: 10px; padding: .9rem 1rem 1rem; min-width: 0; }
.card header {
  display: flex; justify-content: space-between; gap: .6rem; font-size: .8125rem; color: var(--soft);
  margin-bottom: .6rem;
}
.card header b { color: var(--ink); font-weight: 650; }
.strip { display: grid; gap: .4rem; grid-auto-columns: minmax(0, 4rem); grid-auto-flow: column; }
.answers { display: grid; gap: .7rem; grid-template-columns: repeat(auto-fill, minmax(62px, 1fr)); }
.filters { display: grid; gap: .5rem; margin-top: 1.2rem; font-size: .8125rem; }
.filters fieldset { border: 0; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .35rem; }
.filters legend { float: left; width: 7rem; color: var(--soft); padding: .2rem 0; }
.filters label { border: 1px solid var(--line); border-radius: 1rem; padding: .2rem .7rem; cursor: pointer; }
.filters input { position: absolute; opacity: 0; width: 1px; height: 1px; }
.filters label:has(:checked) { background: var(--accent); border-color: var(--accent); color: var(--paper); }
.filters label:has(:focus-visible) { outline: 2px solid var(--accent); outline-offset: 2px; }
section { counter-reset: shown; }
.card { counter-increment: shown; }
.shown::after { content: counter(shown) " shown"; }
.asked {
  font-size: .8125rem; line-height: 1.3; color: var(--soft); margin: .9rem 0 .7rem;
  border-top: 1px solid var(--line); padding-top: .7rem;
}
.asked b { color: var(--ink); font-weight: 650; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .75rem; line-height: 1.25; margin-top: .3rem; overflow-wrap: anywhere; }
.strip figcaption { text-align: center; font-size: .6563rem; margin-inline: -.25rem; }
img, .query {
  display: block; width: 100%; aspect-ratio: 1; border-radius: 5px; object-fit: cover;
  background: var(--wash);
}
img { outline: 1px solid var(--line); outline-offset: -1px; }
img.small { image-rendering: pixelated; }
.query {
  display: grid; place-items: center; border: 1.5px dashed var(--soft); background: none;
  color: var(--soft); font: 1.5rem var(--serif);
}
.query + figcaption { font-weight: 650; }
.answers .frame { position: relative; }
.mark {
  position: absolute; right: -6px; top: -6px; width: 20px; height: 20px; border-radius: 50%;
  font: 700 12px/20px var(--sans); text-align: center; box-shadow: 0 0 0 2px var(--paper);
}
.right .mark { background: var(--accent); color: var(--paper); }
.wrong .mark { background: var(--paper); color: var(--ink); box-shadow: 0 0 0 1.5px var(--soft); }
.wrong img { outline: 1.5px dashed var(--soft); }
.answers figcaption b { display: block; font-weight: 650; }
.wrong figcaption span { color: var(--soft); }
.said { font: italic .9375rem/1.4 var(--serif); margin: .8rem 0 0; overflow-wrap: anywhere; }
.answered { display: grid; grid-template-columns: 5.5rem minmax(0, 1fr); gap: 0 .9rem; align-items: start; }
.answered .said { margin: 0; }
.said small { font: .75rem var(--sans); display: block; }
details { margin-top: .55rem; }
summary { cursor: pointer; color: var(--accent); font-size: .9375rem; }
footer { margin-top: 4rem; color: var(--soft); font-size: .875rem; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }

@media (max-width: 760px) {
  main { padding: 2.4rem 1.1rem 3rem; }
  .lede { font-size: 1.15rem; }
  .two { grid-template-columns: minmax(0, 1fr); }
  .two > * + * { margin-top: 1.8rem; }
  .row { grid-template-columns: 6.6rem minmax(0, 1fr) 5.2rem; gap: .6rem; }
  .row .name small { display: none; }
  .hero { gap: .5rem; } .hero figure { width: 64px; } .hero .arrow { height: 64px; font-size: 1.1rem; }
  .hero figcaption { font-size: .75rem; }
  .meter { width: 1.9rem; margin-right: .4rem; }
  th, td { padding: .4rem .35rem; }
  table { font-size: .8438rem; }
  .plot { height: 240px; margin-left: 2.1rem; margin-right: 3.9rem; }
  .cards { grid-template-columns: minmax(0, 1fr); }
  .costs td:last-child { min-width: 9rem; }
}
@media print { section { break-inside: avoid-page; } main { padding: 0; } }
"""
