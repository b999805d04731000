"use strict";
(() => {
  const INKS = {
    light: { text: "#59636c", line: "#8a939b40" },
    dark: { text: "#a0abb5", line: "#8a939b40" },
  };
  const SHIFT = 0.25;
  const KEYS = {
    "+": "in", "=": "in", "-": "out", ArrowLeft: "left", ArrowRight: "right", 0: "reset",
  };
  const isDark = matchMedia("(prefers-color-scheme: dark)");

  function models() {
    const roots = Bokeh.documents.flatMap((document) => document.roots());
    return new Set(roots.flatMap((root) => [...root.references()]));
  }

  // A canvas does not follow the style sheet, so its text and lines are told.
  function paint(ink) {
    const colours = {
      axis_label_text_color: ink.text,
      major_label_text_color: ink.text,
      axis_line_color: ink.line,
      major_tick_line_color: ink.line,
      grid_line_color: ink.line,
    };
    for (const model of models()) {
      const own = Object.entries(colours).filter(
        ([key]) => key in model.properties && model[key] != null,
      );
      if (own.length) model.setv(Object.fromEntries(own));
    }
  }

  function zoom(name, action) {
    const range = [...models()].find((model) => model.name === name && model.bounds);
    const [least, most] = range.bounds;
    const length = range.end - range.start;
    const middle = (range.start + range.end) / 2;
    const [start, end] = {
      in: [middle - length / 4, middle + length / 4],
      out: [middle - length, middle + length],
      left: [range.start - SHIFT * length, range.end - SHIFT * length],
      right: [range.start + SHIFT * length, range.end + SHIFT * length],
      reset: range.tags,
    }[action];
    const wanted = Math.min(end - start, most - least);
    const from = Math.max(least, Math.min(start, most - wanted));
    range.setv({ start: from, end: from + wanted });
  }

  function begin() {
    if (!Bokeh.documents.length) {
      requestAnimationFrame(begin);
      return;
    }
    paint(isDark.matches ? INKS.dark : INKS.light);
    isDark.addEventListener("change", () => paint(isDark.matches ? INKS.dark : INKS.light));
    addEventListener("beforeprint", () => paint(INKS.light));
    addEventListener("afterprint", () => paint(isDark.matches ? INKS.dark : INKS.light));
    for (const button of document.querySelectorAll("button[data-do]")) {
      button.addEventListener("click", () => zoom(button.dataset.zoom, button.dataset.do));
    }
    for (const drawing of document.querySelectorAll(".drawing[data-zoom]")) {
      drawing.addEventListener("keydown", (event) => {
        const action = KEYS[event.key];
        if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
        event.preventDefault();
        zoom(drawing.dataset.zoom, action);
      });
    }
    // A finger that drags must scroll the page.
    if (matchMedia("(pointer: coarse)").matches) {
      for (const model of models()) if (model.toolbar) model.toolbar.active_drag = null;
    }
  }
  begin();
})();
