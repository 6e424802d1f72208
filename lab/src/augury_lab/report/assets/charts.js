"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts-data").textContent);
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 40rem)");
  const coarse = matchMedia("(pointer: coarse)");
  const small = () => coarse.matches || narrow.matches;
  const token = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();

  const coloured = (trace, hidden, faint) => {
    const colour = token(trace.meta.colour);
    const result = { ...trace, visible: !hidden.has(trace.meta.series) };
    result.line = { ...trace.line, color: colour };
    result.marker = { ...trace.marker, color: colour };
    if (trace.meta.band) result.fillcolor = colour + (faint ? "14" : "26");
    for (const error of ["error_x", "error_y"]) {
      if (trace[error]) result[error] = { ...trace[error], color: colour };
    }
    return result;
  };

  const axis = (given) => ({
    gridcolor: token("grid"), zerolinecolor: token("muted"), zeroline: false, linecolor: token("line"),
    automargin: true, ...given,
    title: { standoff: 10, ...given.title, font: { size: 13, color: token("muted") } },
  });

  const dressed = (layout) => ({
    ...layout,
    annotations: (layout.annotations || []).map((note) => ({ bgcolor: token("paper"), borderpad: 1, ...note })),
    xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis),
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: token("ink") },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: { bgcolor: token("raised"), bordercolor: token("line"), font: { color: token("ink") }, align: "left" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: token("muted"), activecolor: token("link") },
    margin: { l: 48, r: narrow.matches ? 8 : 16, t: 28, b: 48 },
    showlegend: false, hovermode: "closest",
    // A finger scrolls the page.
    dragmode: small() ? false : "zoom",
  });

  const swatch = (trace) => {
    const make = (name, attributes) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      return element;
    };
    const { colour, dash, symbol } = trace.meta;
    const svg = make("svg", { width: 22, height: 12, viewBox: "0 0 22 12", "aria-hidden": "true" });
    const paint = `var(--${colour})`;
    if (dash) {
      const dashes = { dash: "6 3", dot: "2 2", dashdot: "6 2 2 2" }[dash] || "none";
      const line = make("line", { x1: 0, x2: 22, y1: 6, y2: 6, "stroke-width": 2.5, "stroke-dasharray": dashes });
      line.style.stroke = paint;
      svg.append(line);
    } else {
      const paths = {
        square: "M6 1h10v10h-10z", diamond: "M11 0l6 6l-6 6l-6-6z", "triangle-up": "M11 1l6 10h-12z",
      };
      const shape = paths[symbol] ? make("path", { d: paths[symbol] }) : make("circle", { cx: 11, cy: 6, r: 5 });
      shape.style.fill = paint;
      svg.append(shape);
    }
    return svg;
  };

  const set_up = (chart) => {
    const place = document.getElementById("chart-" + chart.key);
    const menu = document.getElementById("menu-" + chart.key);
    const legend = document.getElementById("legend-" + chart.key);
    const hidden = new Set();
    const chosen = () => chart.variants[menu ? menu.selectedIndex : 0];
    const height = place.clientHeight;

    const draw = () => {
      const { data, layout } = chosen();
      return Plotly.react(place, data.map((trace) => coloured(trace, hidden, data.length > 12)), { ...dressed(layout), height }, {
        displaylogo: false, responsive: true, displayModeBar: !small(),
        // plotly's own default would offer to send the chart to its makers' servers.
        showSendToCloud: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
      });
    };

    const list = () => {
      const entries = new Map(chosen().data.filter((t) => !t.meta.band).map((trace) => [trace.meta.series, trace]));
      legend.replaceChildren(...[...entries].map(([name, trace]) => {
        const button = document.createElement("button");
        button.type = "button";
        button.setAttribute("aria-pressed", String(!hidden.has(name)));
        button.append(swatch(trace), name);
        button.addEventListener("click", () => {
          hidden.has(name) ? hidden.delete(name) : hidden.add(name);
          button.setAttribute("aria-pressed", String(!hidden.has(name)));
          draw();
        });
        const item = document.createElement("li");
        item.append(button);
        return item;
      }));
    };

    if (menu) menu.addEventListener("change", () => { if (legend) list(); draw(); });
    if (legend) list();
    draw();
    return draw;
  };

  const redraw = charts.map(set_up);
  const all = () => redraw.forEach((draw) => draw());
  dark.addEventListener("change", all);
  narrow.addEventListener("change", all);
  addEventListener("beforeprint", () => { root.classList.add("printing"); all(); });
  addEventListener("afterprint", () => { root.classList.remove("printing"); all(); });
})();
