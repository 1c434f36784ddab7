"use strict";
(() => {
  const root = document.documentElement, systemDark = matchMedia("(prefers-color-scheme: dark)");
  const memory = (() => { try { localStorage.getItem(""); return localStorage; } catch { return null; } })();
  const chosen = memory && memory.getItem("tutelage-theme");
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);

  document.addEventListener("DOMContentLoaded", () => {
    const data = JSON.parse(document.getElementById("page-data").textContent);
    const all = (selector, within = document) => [...within.querySelectorAll(selector)];
    const make = (tag, text, kind) => {
      const element = document.createElement(tag);
      if (text !== undefined) element.textContent = text;
      if (kind) element.className = kind;
      return element;
    };

    // Plots: the library is unpacked when the first of them comes into view.
    const probe = make("span");
    probe.hidden = true;
    document.body.append(probe);
    const colour = (name, opacity = 1) => {
      probe.style.color = name;
      const found = getComputedStyle(probe).color;
      return opacity === 1 ? found : found.replace(/^rgb\((.*)\)$/, `rgba($1, ${opacity})`);
    };
    const themed = (value) => {
      if (Array.isArray(value)) return typeof value[0] === "number" || value[0] === null ? value : value.map(themed);
      if (value && typeof value === "object") {
        const copy = Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, themed(inner)]));
        if (value.fill_opacity) copy.fillcolor = colour(value.fillcolor, value.fill_opacity);
        delete copy.fill_opacity;
        return copy;
      }
      return typeof value === "string" && value.startsWith("var(--") ? colour(value) : value;
    };
    const axis = (title, own = {}) => ({
      title: { text: title, font: { size: 12 }, standoff: 8 }, automargin: true, gridcolor: colour("var(--line)"),
      linecolor: colour("var(--line)"), zerolinecolor: colour("var(--line)"), ...own,
    });
    const layoutOf = (plot) => {
      const own = themed(plot.layout);
      const names = plot.traces.filter((trace) => trace.showlegend !== false);
      return {
        ...own, xaxis: axis(plot.x_title, own.xaxis), yaxis: axis(plot.y_title, own.yaxis),
        margin: { l: 48, r: 12, t: 8, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("var(--muted)") },
        showlegend: own.showlegend || names.length > 1, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
        hovermode: "x unified", dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
        hoverlabel: { bgcolor: colour("var(--sheet)"), bordercolor: colour("var(--line)"), font: { color: colour("var(--ink)") } },
      };
    };
    let library = null;
    const unpack = async () => {
      const packed = atob(document.getElementById("plotly-gzip-base64").textContent);
      const stream = new Blob([Uint8Array.from(packed, (letter) => letter.charCodeAt(0))]).stream();
      const script = make("script", await new Response(stream.pipeThrough(new DecompressionStream("gzip"))).text());
      document.head.append(script);
      script.remove();
    };
    const drawn = new Set();
    const draw = async (figure) => {
      const canvas = figure.querySelector(".canvas"), plot = data.plots[figure.dataset.plot];
      if (!("DecompressionStream" in window)) {
        canvas.textContent = "This browser is too old to draw the plots.";
        return;
      }
      await (library = library || unpack());
      const settings = { responsive: true, displayModeBar: false };
      await Plotly.react(canvas, themed(plot.traces), layoutOf(plot), settings);
      drawn.add(figure);
      figure.dataset.drawn = "yes";
    };
    const watcher = new IntersectionObserver((entries) => {
      for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
        watcher.unobserve(target);
        draw(target);
      }
    }, { rootMargin: "200px" });
    all(".plot").forEach((figure) => watcher.observe(figure));
    addEventListener("beforeprint", () => all(".plot").forEach(draw));

    // Light and dark.
    const toggle = document.getElementById("theme");
    const name = () => { toggle.textContent = isDark() ? "Light" : "Dark"; };
    const repaint = () => { name(); drawn.forEach(draw); };
    toggle.hidden = false;
    name();
    toggle.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      try { memory && memory.setItem("tutelage-theme", root.dataset.theme); } catch { /* full, or not allowed */ }
      repaint();
    });
    systemDark.addEventListener("change", repaint);

    // Samples: search, order, and what the tokens are coloured by.
    const list = document.getElementById("samples");
    if (!list) return;
    const samples = all(".sample", list), search = document.getElementById("search");
    const order = document.getElementById("order"), measure = document.getElementById("measure");
    const number = (value) => (value === null ? "∞" : value >= 0.001 || value === 0 ? value.toPrecision(2) : "< 0.001");
    const unit = () => (measure.value === "total_variation" ? "" : " nats");
    const meanOf = (view) => {
      const values = data.views[view][measure.value].map((value) => (value === null ? Infinity : value));
      return values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);
    };
    const divergence = (sample) => {
      const views = sample.dataset.views.split(" ").filter(Boolean);
      return views.length ? views.reduce((sum, view) => sum + meanOf(view), 0) / views.length : -1;
    };
    const level = (value) => (value === null ? 5 : data.levels[measure.value].filter((bound) => value >= bound).length);
    const find = () => {
      const wanted = search.value.trim().toLowerCase();
      let shown = 0;
      for (const sample of samples) {
        sample.hidden = wanted !== "" && !sample.textContent.toLowerCase().includes(wanted);
        shown += !sample.hidden;
      }
      document.getElementById("count").textContent = wanted ? `${shown} of ${samples.length}` : `${samples.length} samples`;
    };
    const arrange = () => {
      const sign = { data: 0, high: -1, low: 1 }[order.value];
      const key = (sample) => (sign ? sign * divergence(sample) : Number(sample.dataset.number));
      samples.slice().sort((one, other) => key(one) - key(other)).forEach((sample) => list.append(sample));
    };
    const paint = () => {
      for (const block of all(".tokens", list)) {
        const values = data.views[block.dataset.view][measure.value];
        all(".token", block).forEach((token, at) => {
          token.className = token.className.replace(/\bd\d\b/, `d${level(values[at])}`);
        });
      }
      all("[data-mean]", list).forEach((place) => { place.textContent = `${number(meanOf(place.dataset.mean))}${unit()} a token`; });
      const bounds = data.levels[measure.value];
      all(".legend [data-level]").forEach((box, at) => { box.textContent = at ? `≥ ${bounds[at - 1]}` : `< ${bounds[0]}`; });
      arrange();
    };
    search.addEventListener("input", find);
    find();
    if (!measure) return;
    order.addEventListener("change", arrange);
    measure.addEventListener("change", paint);
    paint();

    // The token view.
    const panel = document.getElementById("panel");
    const percent = (share) => (share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);
    const tops = (title, choices, own) => {
      const part = make("div"), rows = make("ol");
      part.append(make("h5", title), rows);
      for (const [text, probability] of choices) {
        const row = make("li", undefined, text === own ? "own" : ""), bar = make("i");
        bar.style.width = `${100 * probability}%`;
        row.append(bar, make("span", text.replace(/\n/g, "↵").replace(/ /g, "␣")), make("span", percent(probability)));
        rows.append(row);
      }
      return part;
    };
    let on = null;
    const hide = () => {
      if (on) on.classList.remove("on");
      on = null;
      panel.hidden = true;
    };
    const show = (token) => {
      hide();
      on = token;
      token.classList.add("on");
      const view = data.views[token.closest(".tokens").dataset.view], at = Number(token.dataset.at);
      const share = (logp) => percent(Math.exp(logp === null ? -Infinity : logp));
      const head = make("div");
      head.append(make("b", view.name[at].replace(/\n/g, "↵").replace(/ /g, "␣")),
        ` student ${share(view.student_logp[at])}, teacher ${share(view.teacher_logp[at])}`);
      const figures = make("small", `reverse KL ${number(view.reverse_kl[at])} · forward KL ${number(view.forward_kl[at])} nats · ` +
        `total variation ${number(view.total_variation[at])}`);
      const both = make("div", undefined, "tops");
      both.append(tops("student", view.student_top[at], view.name[at]), tops("teacher", view.teacher_top[at], view.name[at]));
      panel.replaceChildren(head, figures, both);
      panel.hidden = false;
      place(token);
    };
    const place = (token) => {
      const box = token.getBoundingClientRect(), height = panel.offsetHeight, width = panel.offsetWidth;
      panel.classList.toggle("top", box.bottom > innerHeight - height - 24); // on a phone it is docked
      const below = box.bottom + 8 + height < innerHeight || box.top < height + 8;
      panel.style.top = `${below ? box.bottom + 8 : box.top - height - 8}px`;
      panel.style.left = `${Math.max(12, Math.min(box.left, root.clientWidth - width - 12))}px`;
    };
    const tokenOf = (event) => (event.target instanceof Element ? event.target.closest("#samples .token") : null);
    list.addEventListener("mouseover", (event) => { const token = tokenOf(event); if (token) show(token); });
    list.addEventListener("mouseout", (event) => { if (tokenOf(event) && document.activeElement !== on) hide(); });
    list.addEventListener("focusin", (event) => { const token = tokenOf(event); if (token) show(token); });
    list.addEventListener("focusout", hide);
    addEventListener("scroll", () => { if (on && on === document.activeElement) place(on); else hide(); }, { passive: true, capture: true });
    addEventListener("click", (event) => { const token = tokenOf(event); if (token) { token.focus(); show(token); } else hide(); });
    addEventListener("keydown", (event) => {
      if (event.key === "Escape") hide();
      const token = document.activeElement && document.activeElement.closest("#samples .token");
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!token || !step) return;
      event.preventDefault();
      const tokens = all(".token", token.parentElement);
      const next = tokens[Math.min(tokens.length - 1, Math.max(0, tokens.indexOf(token) + step))];
      token.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  });
})();
