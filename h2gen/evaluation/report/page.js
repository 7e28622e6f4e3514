"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const data = JSON.parse($("data").textContent);
  const uris = JSON.parse($("uris").textContent);
  const state = { method: data.chosen, case: 0, metric: 0 };

  const shot = (method) => data.methods[method].shots[state.case];
  const uri = (made) => (made && made.picture >= 0 ? uris[made.picture] : "");

  function element(tag, text) {
    const made = document.createElement(tag);
    made.textContent = text;
    return made;
  }

  function link(id, made) {
    if (made && made.path) $(id).href = made.path;
    else $(id).removeAttribute("href");
  }

  // A video is one image with all of its frames: so both show the same frame at the same time.
  const video = data.video;
  const sheets = {};
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let frame = 0;
  let clock = 0;

  function sheetOf(source) {
    if (!source) return null;
    const sheet = new Image();
    sheet.addEventListener("load", drawFrame);
    sheet.src = source;
    return sheet;
  }

  function drawFrame() {
    const { width, height, columns } = video;
    for (const [id, sheet] of Object.entries(sheets)) {
      if (!sheet || !sheet.complete || !sheet.naturalWidth) continue;
      const [x, y] = [width * (frame % columns), height * Math.floor(frame / columns)];
      $(id).getContext("2d").drawImage(sheet, x, y, width, height, 0, 0, width, height);
    }
    $("frame").value = String(frame);
    $("frame-words").textContent = `frame ${frame * video.every + 1} of ${video.whole}`;
  }

  function goTo(number) {
    frame = number % video.frames;
    drawFrame();
  }

  function play(on) {
    clearInterval(clock);
    clock = on ? setInterval(() => goTo(frame + 1), video.milliseconds) : 0;
    $("play").textContent = on ? "Pause" : "Play";
  }

  function showPictures() {
    const method = data.methods[state.method];
    const [before, after] = [shot(data.reference), shot(state.method)];
    const { prompt, seed } = data.cases[state.case];
    for (const [id, made, label] of [["before", before, "Uncached"], ["after", after, method.label]]) {
      const source = uri(made);
      $(id).hidden = !source;
      if (video) sheets[id] = sheetOf(source);
      else if (source) $(id).src = source;
      else $(id).removeAttribute("src");
      if (video) $(id).setAttribute("aria-label", `${label}: ${prompt}`);
      else $(id).alt = `${label}: ${prompt}`;
    }
    $("missing").hidden = Boolean(uri(before) && uri(after));
    $("prompt").textContent = prompt;
    $("prompt").title = prompt;
    $("seed").textContent = `seed ${seed}`;
    $("after-label").textContent = $("after-link").textContent = method.label;
    const words = (made) => (made ? made.figures.slice(0, 2).map(([name, value]) => (name === "Time" ? value : `${value} of the blocks`)).join(", ") : "");
    $("before-words").textContent = words(before);
    $("after-words").textContent = words(after);
    link("before-link", before);
    link("after-link", after);
    $("originals").hidden = !(before && before.path && after && after.path);
    const rows = after ? after.figures.slice(2) : [];
    if (after && after.identical) rows.unshift(["Every pixel", "identical"]);
    $("figures").replaceChildren(...rows.map(([name, value]) => {
      const row = document.createElement("div");
      row.append(element("dt", name), element("dd", value));
      return row;
    }));
  }

  function showDecisions() {
    const method = data.methods[state.method];
    const made = shot(state.method);
    const { prompt } = data.cases[state.case];
    const has = made && made.chart >= 0;
    $("decisions-which").textContent = has
      ? `${method.label}: ${prompt}`
      : `${method.label} has no recorded decisions. Choose a setting of H2-Cache to see its decisions.`;
    const [wide, narrow] = has ? data.charts[made.chart] : ["", ""];
    // h2gen draws the charts; they contain no untrusted text.
    $("decisions-chart").innerHTML = `<div class="wide">${wide}</div><div class="narrow">${narrow}</div>`;
  }

  function readout(index) {
    const method = data.methods[index];
    $("readout-label").textContent = method.label;
    $("readout").textContent = method.readings[state.metric] || "";
  }

  function showMethod() {
    const { name } = data.methods[state.method];
    $("method").value = String(state.method);
    for (const point of all(".point")) {
      const chosen = point.dataset.method === name;
      point.classList.toggle("chosen", chosen);
      point.setAttribute("aria-pressed", String(chosen));
      if (chosen) point.parentNode.append(point); // drawn last, on top
    }
    for (const row of all("#methods tbody tr")) {
      if (row.dataset.method === name) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
    readout(state.method);
  }

  function show() {
    showPictures();
    showDecisions();
    showMethod();
  }

  function choose(method, number) {
    if (method !== undefined) state.method = method;
    if (number !== undefined) state.case = number;
    const radio = document.querySelector(`input[name="case"][value="${state.case}"]`);
    if (radio) radio.checked = true;
    show();
  }

  // The slider: keys move the range, a pointer anywhere on the stage moves it too.
  const stage = $("stage");
  const slider = $("slider");
  function slide(value) {
    slider.value = String(value);
    stage.style.setProperty("--at", `${slider.value}%`);
    slider.setAttribute("aria-valuetext", `${Math.round(slider.value)} % uncached`);
  }
  function follow(event) {
    const box = stage.getBoundingClientRect();
    slide(((event.clientX - box.left) / box.width) * 100);
  }
  slider.addEventListener("input", () => slide(slider.value));
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    stage.setPointerCapture(event.pointerId);
    follow(event);
    slider.focus({ preventScroll: true });
    event.preventDefault();
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) follow(event);
  });

  // Choosing.
  const index = new Map(data.methods.map((method, number) => [method.name, number]));
  for (const [number, image] of all("#cases img").entries()) {
    const source = video ? uris[data.cases[number].thumbnail] : uri(data.methods[data.reference].shots[number]);
    if (source) image.src = source;
  }
  $("method").addEventListener("change", (event) => choose(Number(event.target.value)));
  $("cases").addEventListener("change", (event) => choose(undefined, Number(event.target.value)));
  for (const point of all(".point")) {
    const number = index.get(point.dataset.method);
    point.addEventListener("click", () => choose(number));
    point.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose(number);
      point.focus(); // it has been moved to the top
    });
    for (const type of ["pointerenter", "focus"]) point.addEventListener(type, () => readout(number));
    for (const type of ["pointerleave", "blur"]) point.addEventListener(type, () => readout(state.method));
  }
  for (const input of all('input[name="metric"]')) {
    input.addEventListener("change", () => {
      state.metric = Number(input.value);
      for (const [number, chart] of all(".pareto").entries()) chart.hidden = number !== state.metric;
      readout(state.method);
    });
  }

  // The table.
  const body = document.querySelector("#methods tbody");
  body.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    const row = event.target.closest("tr");
    if (button && button.dataset.case) {
      choose(Number(button.dataset.index), Number(button.dataset.case));
      $("look").scrollIntoView({ behavior: calm ? "auto" : "smooth" });
    } else if (row) {
      choose(index.get(row.dataset.method));
    }
  });
  function key(row, column) {
    const cell = row.cells[column];
    return column === 0 ? cell.textContent : cell.dataset.value === undefined ? NaN : Number(cell.dataset.value);
  }
  for (const button of all("#methods thead button")) {
    button.addEventListener("click", () => {
      const column = Number(button.dataset.column);
      const head = button.closest("th");
      const before = head.getAttribute("aria-sort");
      const rising = before ? before === "descending" : Boolean(button.dataset.rising);
      for (const other of all("#methods thead th[aria-sort]")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [key(a, column), key(b, column)];
        if (column === 0) return (rising ? 1 : -1) * x.localeCompare(y, undefined, { numeric: true });
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // missing values last
        return rising ? x - y : y - x;
      });
      body.append(...rows);
    });
  }

  if (video) {
    $("play").addEventListener("click", () => play(!clock));
    $("frame").addEventListener("input", (event) => {
      play(false);
      goTo(Number(event.target.value));
    });
    play(!calm && video.frames > 1);
  }

  slide(50);
  show();
})();
