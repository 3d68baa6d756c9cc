// Draws the forgetting of a run: what GET /v1/runs/{run}/forgetting says, of its corpus and of the domains that are
// ticked. The page tells the same in words and in a table.
"use strict";

(() => {
  const chart = document.getElementById("curve");
  if (!chart) return;
  const readout = document.getElementById("curve-readout");
  const ticks = document.getElementById("curve-domains");
  const PARTS = ["nats", "low", "high", "least_nats", "most_nats"];
  const DASHES = [[], [8, 4], [2, 3], [8, 3, 2, 3]];
  let plot = null;
  let curves = null;
  let domains = [];

  const color = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const signed = value => value == null ? "not known" : (value < 0 ? "" : "+") + value.toFixed(3);
  const lineOf = index => ({ stroke: color(`--line-${index % 6}`), dash: DASHES[Math.floor(index / 6) % 4] });

  // The latest changes, as the log tells them: [step, text].
  function marks() {
    return [...document.querySelectorAll("#live .log li[data-step]")]
      .filter(each => each.dataset.kind !== "created")
      .map(each => [Number(each.dataset.step) + 1, each.dataset.kind]);
  }

  function table() {
    const corpus = [curves.corpus.step, ...PARTS.map(part => curves.corpus[part])];
    const joined = uPlot.join([corpus, ...domains.map(each => [each.step, each.nats])]);
    if (curves.budget_nats != null) joined.push(joined[0].map(() => curves.budget_nats));
    return joined;
  }

  function series() {
    const edge = { stroke: "transparent", points: { show: false } };
    const thin = { stroke: color("--soft"), width: 1, points: { show: false } };
    const lines = domains.map(each => ({ label: each.name, width: 2, ...lineOf(each.index) }));
    const budget = { label: "budget", stroke: color("--bad"), width: 2, dash: [10, 6], points: { show: false } };
    return [
      { label: "step" }, { label: "corpus", stroke: color("--accent"), width: 3 }, edge, edge, thin, thin, ...lines,
      ...(curves.budget_nats == null ? [] : [budget]),
    ];
  }

  function drawMarks(self) {
    const { ctx, bbox } = self;
    ctx.save();
    ctx.strokeStyle = color("--look-line");
    ctx.fillStyle = color("--ink");
    ctx.setLineDash([4, 4]);
    ctx.textAlign = "left";
    let lastLabel = -Infinity;
    for (const [step, kind] of marks().reverse()) {
      const x = self.valToPos(step, "x", true);
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      if (x - lastLabel > 90 * devicePixelRatio) {
        ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
        ctx.fillText(kind, x + 4 * devicePixelRatio, bbox.top + 12 * devicePixelRatio);
        lastLabel = x;
      }
    }
    ctx.restore();
  }

  function tell(index) {
    if (index == null || !curves.corpus.step.length) return;
    const step = plot.data[0][index];
    const at = curves.corpus.step.indexOf(step);
    const corpus = curves.corpus;
    const words = at < 0 ? [] : [`corpus ${signed(corpus.nats[at])} [${signed(corpus.low[at])}, ${signed(corpus.high[at])}]`];
    domains.forEach((each, i) => {
      const value = plot.data[6 + i][index];
      if (value != null) words.push(`${each.name} ${signed(value)}`);
    });
    readout.textContent = `Step ${step.toLocaleString("en")}: ${words.join("; ") || "not known"}`;
  }

  function draw() {
    const axis = { stroke: color("--soft"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line") } };
    plot?.destroy();
    plot = new uPlot({
      width: chart.clientWidth,
      height: 280,
      legend: { show: false },
      scales: { x: { time: false } },
      axes: [axis, { ...axis, size: 60, values: (_, values) => values.map(each => each.toFixed(2)) }],
      series: series(),
      bands: [{ series: [3, 2], fill: color("--band-soft") }],
      cursor: { drag: { x: true, y: false } },
      hooks: { draw: [drawMarks], setCursor: [self => { if (self.cursor.event) tell(self.cursor.idx); }] },
    }, table(), chart);
  }

  async function points(domain) {
    const query = domain == null ? "" : `?domain=${encodeURIComponent(domain)}`;
    const answer = await fetch(`/runs/${chart.dataset.run}/curve-points${query}`);
    return answer.ok ? answer.json() : null;
  }

  async function load() {
    const boxes = [...ticks.querySelectorAll("input")];
    const wanted = boxes.map((each, index) => ({ index, name: each.value })).filter(each => boxes[each.index].checked);
    const [found, ...more] = await Promise.all([points(null), ...wanted.map(each => points(each.name))]);
    if (!found) return;
    const before = domains.map(each => each.name).join("\n");
    curves = found;
    domains = wanted.flatMap((each, i) => (more[i]?.domains ?? []).map(curve => ({ ...curve, index: each.index })));
    const isKnown = curves.corpus.nats.some(each => each != null);
    chart.hidden = ticks.hidden = document.getElementById("curve-keys").hidden = !isKnown;
    if (!isKnown) return;
    if (plot && before === domains.map(each => each.name).join("\n")) plot.setData(table());
    else draw();
  }

  ticks.addEventListener("change", load);

  chart.addEventListener("keydown", event => {
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    if (!plot || !(event.key in moves)) return;
    event.preventDefault();
    const last = plot.data[0].length - 1;
    const from = plot.cursor.idx ?? (event.key === "ArrowLeft" ? last + 1 : -1);
    const index = Math.min(last, Math.max(0, from + moves[event.key]));
    const value = plot.data[1][index];
    const top = value == null ? 0 : plot.valToPos(value, "y");
    plot.setCursor({ left: plot.valToPos(plot.data[0][index], "x"), top });
    tell(index);
  });

  new ResizeObserver(() => { if (plot && chart.clientWidth) plot.setSize({ width: chart.clientWidth, height: 280 }); })
    .observe(chart.parentElement);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (plot) draw(); });
  document.addEventListener("htmx:after:swap", event => {
    if (event.target.id === "curve-section" || event.detail?.ctx?.sourceElement?.id === "curve-section") load();
  });
  load();
})();
