// The page: asks the server it came from, and draws. No text of a run or a picture ever becomes markup.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en-GB");
const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;
const few = (share) => (share > 0 && share < 0.0005 ? "< 0.1 %" : percent(share, 1));
const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const tint = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function make(tag, attributes = {}, ...children) {
  const own = ["svg", "path", "line", "text", "circle", "rect", "g"].includes(tag);
  const node = own ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

async function ask(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error("convnet-explore does not answer; is it still running?");
  }
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error);
  return told;
}

const redraws = new Map(); // node -> what draws it again, when its size or the colours change
const resized = new ResizeObserver((entries) => entries.forEach((entry) => redraws.get(entry.target)?.()));
function keep(node, draw) {
  if (!redraws.has(node)) resized.observe(node);
  redraws.set(node, draw);
  draw();
}
function drop(root) {
  for (const node of redraws.keys()) {
    if (root.contains(node)) {
      resized.unobserve(node);
      redraws.delete(node);
    }
  }
  root.replaceChildren();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraws.forEach((draw) => draw()));

// ---- curves

const smooth = (values, reach) =>
  values.map((_, k) => {
    const near = values.slice(Math.max(k - reach, 0), k + reach + 1);
    return near.reduce((sum, value) => sum + value, 0) / near.length;
  });

function ticks(low, high, most) {
  const rough = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((k) => k * power).find((s) => s >= rough);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high * (1 + 1e-9); k++) found.push(k * step || 0);
  return found;
}
const short = (value) => (value === 0 ? "0" : Math.abs(value) < 1e-3 ? value.toExponential(0) : `${+value.toPrecision(3)}`);

// lines: [{kind, points: [[step, value], ...], marks}]; the last of a kind is what a reader hears
function plot(svg, what, lines, unit = "") {
  const width = svg.clientWidth || 300, height = svg.clientHeight || 150;
  const left = 40, right = 8, top = 6, bottom = 20;
  const points = lines.flatMap((line) => line.points);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  const last = lines.filter((line) => line.points.length).map((line) => `${line.name} ${short(line.points.at(-1)[1])}${unit}`);
  const until = Math.max(1, ...points.map(([step]) => step));
  svg.setAttribute("aria-label", `${what} up to step ${until}: ${last.join(", ") || "nothing yet"}`);
  svg.dataset.points = points.length;
  if (!points.length) return;
  const values = points.map(([, value]) => value);
  const least = Math.min(...values), most = Math.max(...values);
  const logarithmic = least > 0 && most / least > 30 && what === "learning rate";
  const scale = logarithmic ? Math.log10 : (value) => value;
  const low = logarithmic ? scale(least) - 0.1 : Math.min(0, least), high = logarithmic ? scale(most) + 0.1 : most * 1.05 || 1;
  const x = (step) => left + ((width - left - right) * step) / until;
  const y = (value) => height - bottom - ((height - top - bottom) * (scale(value) - low)) / (high - low || 1);
  const rows = logarithmic ? [least, most] : ticks(low, high, 4);
  for (const value of rows) {
    svg.append(make("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    svg.append(make("text", { class: "tick end", x: left - 5, y: y(value) + 3.5 }, short(value)));
  }
  for (const step of ticks(0, until, Math.max(2, width / 110))) {
    if (Number.isInteger(step)) svg.append(make("text", { class: "tick middle", x: x(step), y: height - 5 }, number(step)));
  }
  for (const { kind, points: own, marks } of lines) {
    const path = own.map(([step, value], k) => `${k ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    if (own.length > 1) svg.append(make("path", { class: `curve ${kind}`, d: path }));
    if (marks || own.length === 1) {
      own.forEach(([step, value]) => svg.append(make("circle", { class: kind, cx: x(step), cy: y(value), r: 2.4 })));
    }
  }
  pointAt(svg, lines.filter((line) => line.kind !== "raw"), { x, y, left, right, width, height, top, bottom, until, unit });
}

function pointAt(svg, lines, place) {
  const cross = make("g", { class: "cross", visibility: "hidden" });
  const rule = make("line", { y1: place.top, y2: place.height - place.bottom });
  const words = make("text", { y: place.top + 9 });
  cross.append(rule, words);
  svg.append(cross);
  const nearest = (points, step) =>
    points.reduce((best, point) => (Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best), points[0]);
  svg.onpointermove = (event) => {
    const box = svg.getBoundingClientRect();
    const step = ((event.clientX - box.left - place.left) / (place.width - place.left - place.right)) * place.until;
    const known = lines.filter((line) => line.points.length).map((line) => [line.name, nearest(line.points, step)]);
    if (!known.length) return;
    const at = place.x(known[0][1][0]);
    rule.setAttribute("x1", at);
    rule.setAttribute("x2", at);
    words.textContent = known.map(([name, [s, v]]) => `${name} ${short(v)}${place.unit} (${number(s)})`).join(" · ");
    const late = at > place.width / 2;
    words.setAttribute("x", at + (late ? -5 : 5));
    words.setAttribute("class", late ? "end" : "");
    cross.setAttribute("visibility", "visible");
  };
  svg.onpointerleave = () => cross.setAttribute("visibility", "hidden");
}

const THINNED = 1500; // points of a line; more are not told apart
function series(records, event, name, factor = 1) {
  const found = records.filter((r) => r.event === event && typeof r[name] === "number").map((r) => [r.step, factor * r[name]]);
  const by = Math.ceil(found.length / THINNED);
  return by > 1 ? found.filter((_, k) => k % by === 0 || k === found.length - 1) : found;
}

function curves(records, name, factor) {
  const raw = series(records, "train", name, factor);
  const steady = smooth(raw.map(([, value]) => value), 5).map((value, k) => [raw[k][0], value]);
  return [
    { kind: "raw", name: "raw", points: raw },
    { kind: "train", name: "training", points: steady },
    { kind: "valid", name: "validation", points: series(records, "valid", name, factor), marks: true },
  ];
}

function stateOf(records, quiet) {
  const last = records.at(-1);
  if (!last) return "nothing recorded yet";
  const step = `step ${number(last.step ?? 0)}`;
  const best = records.filter((r) => r.event === "valid" && typeof r.top1_error === "number").map((r) => r.top1_error);
  const told = best.length ? `, best error ${percent(Math.min(...best), 2)}` : "";
  if (last.event === "end") return `${last.status ?? "ended"} at ${step}${told}`;
  return `${quiet ? "no news for a while, " : "training, "}epoch ${last.epoch ?? "?"}, ${step}${told}`;
}

// Follows what runs write; calls back with all records of a run, whenever there are new ones.
function follow(address, { runs, records }) {
  const known = new Map();
  const source = new EventSource(address);
  source.addEventListener("open", () => known.clear()); // the server tells everything again
  source.addEventListener("runs", (event) => {
    const told = JSON.parse(event.data);
    runs(told.runs, told.left_out);
  });
  source.addEventListener("records", (event) => {
    const told = JSON.parse(event.data);
    const before = told.anew ? [] : known.get(told.run) ?? [];
    known.set(told.run, before.concat(told.records));
    records(told.run, known.get(told.run));
  });
  return source;
}

// ---- the page of all runs

function showRuns() {
  const cards = new Map();
  const state = (card) => {
    card.said.textContent = stateOf(card.records, card.quiet);
    card.node.classList.toggle("live", !card.quiet && card.records.at(-1)?.event !== "end");
  };
  follow("/live", {
    runs(found, leftOut) {
      $("left-out").hidden = !leftOut.length;
      $("left-out").textContent = `Not shown, since links lead out of them: ${leftOut.join(", ")}.`;
      for (const { id, name, quiet } of found) {
        if (!cards.has(id)) {
          const loss = make("svg", { class: "plot small", role: "img" }), error = make("svg", { class: "plot small", role: "img" });
          const said = make("p", { class: "fine" });
          const plots = make("div", { class: "plots", hidden: true },
            make("figure", {}, make("figcaption", {}, "Loss, nats"), loss), make("figure", {}, make("figcaption", {}, "Top-1 error, %"), error));
          const node = make("li", { class: "card" }, make("h2", {}, make("a", { href: `/runs/${id}` }, name)), said, plots);
          cards.set(id, { node, said, plots, loss, error, records: [] });
        }
        const card = cards.get(id);
        card.quiet = quiet;
        state(card);
      }
      const ids = found.map(({ id }) => id);
      for (const [id, card] of cards) {
        if (ids.includes(id)) continue;
        drop(card.node);
        card.node.remove();
        cards.delete(id);
      }
      ids.forEach((id, k) => {
        const at = $("runs").children[k];
        if (at !== cards.get(id).node) $("runs").insertBefore(cards.get(id).node, at ?? null);
      });
      $("none").hidden = found.length + leftOut.length > 0;
      $("state").textContent = found.length === 1 ? "1 run" : `${found.length} runs`;
    },
    records(id, records) {
      const card = cards.get(id);
      if (!card) return;
      card.records = records;
      card.plots.hidden = false;
      state(card);
      keep(card.loss, () => plot(card.loss, "loss", curves(records, "loss")));
      keep(card.error, () => plot(card.error, "top-1 error", curves(records, "top1_error", 100), " %"));
    },
  });
}

// ---- pixels

function canvasOf(pixels, width, height) {
  const canvas = make("canvas", { width, height });
  const image = new ImageData(width, height);
  for (let k = 0, j = 0; k < width * height; k++) {
    image.data[4 * k] = pixels[j++];
    image.data[4 * k + 1] = pixels[j++];
    image.data[4 * k + 2] = pixels[j++];
    image.data[4 * k + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

const rgb = (hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
const between = (a, b, t) => a.map((value, k) => value + (b[k] - value) * t);

// 256 colours for bytes of which 128 is 0: of a tower (0 or 1), or of both (2)
function ramp(tower) {
  const zero = rgb(tint("map-zero")), half = rgb(tint(`map-${tower + 1}`)), full = rgb(tint("map-full"));
  const below = rgb(tint("map-below"));
  return Array.from({ length: 256 }, (_, byte) => {
    const value = Math.sqrt(Math.abs(byte - 128) / 127);
    if (byte < 128) return between(zero, below, Math.min(value, 1));
    return value < 0.7 ? between(zero, half, value / 0.7) : between(half, full, (value - 0.7) / 0.3);
  });
}

// All maps below each other, as colours.
function sheetOf(bytes, maps, height, width, tower) {
  const colours = ramp(tower);
  const pixels = new Uint8ClampedArray(3 * bytes.length);
  bytes.forEach((byte, k) => pixels.set(colours[byte], 3 * k));
  return canvasOf(pixels, width, height * maps);
}

const SMALL = 12; // of a cell that is no picture
// Cells of a sheet in rows, as wide as the canvas is shown; returns how they lie.
function tile(canvas, sheet, count, cell, marked = [], chosen = -1) {
  const wide = canvas.parentElement.clientWidth || 300, dots = window.devicePixelRatio || 1, gap = 2;
  const most = Math.max(4, Math.min(32, Math.floor((wide + gap) / (cell + gap)))), rows = Math.ceil(count / most);
  const columns = cell < SMALL ? most : Math.ceil(count / rows); // no row much shorter than the others
  const side = Math.min((wide - gap * (columns - 1)) / columns, 2 * cell);
  const high = rows * (side + gap) - gap;
  canvas.width = Math.round(wide * dots);
  canvas.height = Math.round(high * dots);
  canvas.style.width = `${wide}px`;
  canvas.style.height = `${high}px`;
  const pen = canvas.getContext("2d"), own = sheet.height / count;
  pen.imageSmoothingEnabled = false;
  for (let k = 0; k < count; k++) {
    const x = Math.round((k % columns) * (side + gap) * dots), y = Math.round(Math.floor(k / columns) * (side + gap) * dots);
    const to = Math.round(side * dots);
    pen.drawImage(sheet, 0, k * own, sheet.width, own, x, y, to, to);
    if (k === chosen || marked.includes(k)) {
      pen.strokeStyle = tint(k === chosen ? "focus" : "mark");
      pen.lineWidth = 1.5 * dots;
      pen.strokeRect(x + 0.75 * dots, y + 0.75 * dots, to - 1.5 * dots, to - 1.5 * dots);
    }
  }
  return { columns, side, gap };
}

// ---- the page of one run

function showRun() {
  const home = `/runs/${document.body.dataset.run}`;
  let about = null, asking = false, asked = 0, stamp = "";
  let shown = null; // the picture that is looked at, and what was found

  const quietly = (work) => work.catch((error) => trouble(error.message));
  function trouble(text) {
    $("trouble").hidden = !text;
    $("trouble").textContent = text;
  }

  // -- curves and weights

  let last = [], quiet = true;
  follow(`${home}/live`, {
    runs(found) {
      if (!found.length) {
        $("state").textContent = "this run is gone";
        return;
      }
      quiet = found[0].quiet;
      stamp = found[0].stamp;
      $("state").textContent = stateOf(last, quiet);
      if (!about && stamp) learn();
      $("newer").hidden = !about || about.stamp === stamp;
    },
    records(_, records) {
      last = records;
      $("curves").hidden = false;
      $("state").textContent = stateOf(records, quiet);
      keep($("loss"), () => plot($("loss"), "loss", curves(records, "loss")));
      keep($("error"), () => plot($("error"), "top-1 error", curves(records, "top1_error", 100), " %"));
      keep($("rate"), () => plot($("rate"), "learning rate", [{ kind: "rate", name: "rate", points: series(records, "train", "lr") }]));
    },
  });
  $("reload").addEventListener("click", () => location.reload());

  async function learn() {
    if (asking) return;
    asking = true;
    const found = await ask(`${home}/about`).catch((error) => ({ waiting: error.message }));
    asking = false;
    $("waiting").hidden = !found.waiting;
    $("waiting").textContent = found.waiting ?? "";
    if (found.waiting) return;
    about = found;
    const step = about.step === null ? "" : `, weights of step ${number(about.step)}`;
    $("network").textContent = `${about.network}: ${number(about.parameters)} parameters, ${number(about.classes)} classes${step}`;
    for (const id of ["picture", "towers"]) $(id).hidden = false;
    showFilters();
    $("confusion").hidden = !about.data;
    if (about.data) {
      seenFirst.observe($("confusion"));
      quietly(examples());
    } else {
      $("examples-said").textContent = "These weights come without data: choose a picture.";
      $("nearest-said").textContent = "There is no data to search.";
    }
  }
  learn();

  // -- pictures

  async function examples() {
    $("examples-said").textContent = "The data is being opened …";
    let found, notes;
    try {
      ({ pictures: found, notes } = await ask(`${home}/examples`));
    } catch (error) {
      $("examples-said").textContent = error.message;
      return;
    }
    $("examples-said").textContent = notes.join(" ");
    $("examples").replaceChildren(...found.map((one) => thumb(one)));
    if (!shown && !asked) look(`${home}/look/val/${found[0].index}`, {}, `a validation picture of ${found[0].label}`);
  }

  function thumb({ split = "val", index, label }, note = "") {
    const said = `${split === "val" ? "validation" : "training"} picture of ${label}`;
    return make("li", {},
      make("button", { type: "button", class: "thumb", title: "Look at this one", onclick: () => {
        look(`${home}/look/${split}/${index}`, {}, `a ${said}`);
        $("picture").scrollIntoView({ block: "nearest" });
      } },
      make("img", { src: `${home}/pictures/${split}/${index}.png`, alt: said, width: 64, height: 64, loading: "lazy" }),
      make("span", {}, label), ...(note ? [make("small", {}, note)] : [])));
  }

  function send(file) {
    if (!file) return trouble("That was no file of a picture.");
    if (about && file.size > about.limit) {
      return trouble(`This picture is too large; the limit is ${number(about.limit)} bytes.`);
    }
    return look(`${home}/look`, { method: "POST", body: file }, `your picture ${file.name ?? ""}`);
  }
  $("file").addEventListener("change", (event) => {
    send(event.target.files[0]);
    event.target.value = ""; // the same file may be chosen again
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
  addEventListener("dragleave", (event) => event.relatedTarget || $("drop").classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    if (about) send(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => about && event.clipboardData.files.length && send(event.clipboardData.files[0]));

  async function look(address, options, name) {
    const turn = ++asked;
    trouble("");
    document.body.classList.add("busy");
    try {
      const found = await ask(address, options);
      if (turn !== asked) return; // another one was asked for since
      shown = { ...found, name, chosen: 0, falls: null };
      showPicture();
      showGuesses();
      showSeen();
      showLayers();
      nearest(turn);
      if ($("matter").checked) await matter();
    } catch (error) {
      if (turn === asked) trouble(error.message);
    } finally {
      if (turn === asked) document.body.classList.remove("busy");
    }
  }

  function showPicture() {
    const canvas = $("seen");
    canvas.width = canvas.height = shown.side;
    canvas.getContext("2d").drawImage(canvasOf(bytesOf(shown.seen), shown.side, shown.side), 0, 0);
    canvas.setAttribute("aria-label", `${shown.name}, as the network sees it`);
    $("heat").hidden = true;
    const truth = shown.truth === null ? "" : ` It is ${shown.truth}.`;
    $("heat-said").textContent = `This is ${shown.name}, ${shown.side} × ${shown.side} pixels, as the network sees it.${truth}`;
  }

  function showGuesses() {
    $("bars").replaceChildren(...shown.guesses.map(({ label, probability }, k) => {
      const bar = make("span", { class: label === shown.truth ? "bar true" : "bar" });
      bar.style.width = percent(probability, 2).replace(" ", "");
      const button = make("button", { type: "button", "aria-pressed": "false", title: "Which pixels matter for this class",
        onclick: () => {
          shown.chosen = k;
          $("matter").checked = true;
          quietly(matter());
        } },
      bar, make("span", { class: "label" }, label), make("span", { class: "value" }, few(probability)));
      return make("li", {}, button);
    }));
  }

  async function matter() {
    const of = shown;
    if (!of) return;
    if ($("matter").checked && !of.falls) {
      $("heat-said").textContent = "A grey square moves over the picture …";
      of.falls = await ask(`${home}/seen/${of.token}/occlusion`);
    }
    if (of === shown) showMatter();
  }
  $("matter").addEventListener("change", () => quietly(matter()));

  function showMatter() {
    const on = $("matter").checked;
    [...$("bars").querySelectorAll("button")].forEach((b, k) => b.setAttribute("aria-pressed", String(on && k === shown.chosen)));
    if (!on) {
      showPicture();
      return;
    }
    const { largest, values } = shown.falls.maps[shown.chosen], side = shown.side;
    const falls = bytesOf(values), canvas = $("heat"), image = new ImageData(side, side);
    const up = rgb(tint("heat")), down = rgb(tint("cold"));
    falls.forEach((byte, k) => {
      const size = (byte - 128) / 127;
      image.data.set([...(size > 0 ? up : down), 230 * Math.abs(size)], 4 * k);
    });
    canvas.width = canvas.height = side;
    canvas.getContext("2d").putImageData(image, 0, 0);
    canvas.hidden = false;
    const { label, probability } = shown.guesses[shown.chosen];
    $("heat-said").textContent = `Where a grey square of ${shown.falls.square} pixels hides the picture, the probability of ` +
      `${label} (${percent(probability, 1)}) falls by up to ${percent(Math.max(largest, 0), 1)}: strongest colour. ` +
      (falls.some((byte) => byte < 120) ? "Blue: it rises there." : "");
  }

  async function nearest(turn) {
    if (!about.data) return;
    try {
      const found = await ask(`${home}/seen/${shown.token}/neighbours`);
      if (turn !== asked) return;
      const whole = found.total === found.all ? "" : ` of ${number(found.all ?? 0)}`;
      $("nearest").replaceChildren(...found.nearest.map((one) => thumb({ ...one, split: "train" }, one.distance.toPrecision(3))));
      if (found.error) $("nearest-said").textContent = found.error;
      else if (found.finished) $("nearest-said").textContent = `By Euclidean distance in ${found.layer}, among ${number(found.total)}${whole} training pictures.`;
      else if (!found.total) $("nearest-said").textContent = "The data is being opened …";
      else {
        $("nearest-said").textContent = `Being computed: the nearest among ${number(found.done)} of ${number(found.total)} training pictures so far.`;
      }
      if (!found.finished && !found.error) setTimeout(() => turn === asked && nearest(turn), 700);
    } catch (error) {
      if (turn === asked) $("nearest-said").textContent = error.message;
    }
  }

  // -- towers

  const towerName = (k, of) => (of === 1 ? (about.towers.length > 1 ? "both towers" : "the one tower") : `tower ${k + 1}`);

  function showFilters() {
    const { towers, filters } = about;
    $("sees").dataset.towers = towers.length;
    drop($("sees"));
    const strips = towers.map(({ filters: count, pixels, colour }, k) => {
      const canvas = make("canvas", { role: "img", "aria-label": `the ${count} filters of ${filters.layer} in ${towerName(k, towers.length)}` });
      const drawn = make("canvas", { class: "drawn", width: 8, height: 8, role: "img", "aria-label": "no picture yet" });
      const ordered = [...colour].sort((a, b) => a - b);
      const middle = (ordered[(count - 1) >> 1] + ordered[count >> 1]) / 2;
      const strip = make("svg", { class: "strip", role: "img", "aria-label": `share of colour of each filter, median ${percent(middle)}` });
      $("sees").append(make("figure", { class: `tower t${k + 1}` },
        make("figcaption", {}, make("b", {}, towerName(k, towers.length)), ` ${count} filters; half of them are more than ${percent(middle)} colour`),
        make("div", { class: "both" }, make("div", {}, make("div", { class: "sheet" }, canvas), strip),
          make("div", { class: "drawing" }, drawn, make("small", {}, "the picture, drawn by its answers")))));
      const sheet = canvasOf(bytesOf(pixels), filters.side, filters.side * count);
      keep(canvas.parentElement, () => tile(canvas, sheet, count, 36));
      keep(strip, () => dots(strip, colour));
      return strip;
    });
    const crossing = about.crossing.map(({ layer, bytes }) => `${number(bytes)} in front of ${layer}`);
    const sum = about.crossing.reduce((all, { bytes }) => all + bytes, 0);
    $("sees-said").textContent =
      `A dot is a filter: how much of it is colour, from 0 % (black and white) to 100 %; drawn at random, filters have 67 %. ` +
      (strips.length > 1 ? `Between the towers cross ${number(sum)} bytes for a picture (${crossing.join(", ")}), and as many back in training.` : "");
  }

  function dots(svg, shares) {
    const width = svg.clientWidth || 200, x = (share) => 8 + (width - 16) * share;
    svg.setAttribute("viewBox", `0 0 ${width} 34`);
    svg.replaceChildren(make("line", { class: "grid", x1: x(0), x2: x(1), y1: 9, y2: 9 }));
    for (const [share, name, anchor] of [[0, "0 %", "start"], [2 / 3, "random", "middle"], [1, "100 %", "end"]]) {
      svg.append(make("line", { class: "grid", x1: x(share), x2: x(share), y1: 2, y2: 18 }));
      svg.append(make("text", { class: `tick ${anchor}`, x: x(share), y: 30 }, name));
    }
    shares.forEach((share) => svg.append(make("circle", { cx: x(share), cy: 9, r: 4 })));
  }

  function showSeen() {
    $("sees").querySelectorAll(".drawn").forEach((canvas, k) => {
      canvas.width = canvas.height = shown.side;
      canvas.getContext("2d").drawImage(canvasOf(bytesOf(shown.drawn[k]), shown.side, shown.side), 0, 0);
      canvas.setAttribute("aria-label", `${shown.name}, drawn by the filters of ${towerName(k, shown.drawn.length)}, each as strong as it answers`);
    });
  }

  function showLayers() {
    drop($("layers"));
    for (const layer of shown.layers) {
      const count = layer.towers.reduce((sum, { maps }) => sum + maps, 0);
      const size = layer.height * layer.width > 1 ? `${count} maps of ${layer.height} × ${layer.width}` : `${count} values`;
      if (layer.crossing) {
        $("layers").append(make("p", { class: "crossing" }, `${number(layer.crossing)} bytes cross between the towers`));
      }
      const pair = make("div", { class: "pair", "data-towers": layer.towers.length });
      $("layers").append(make("section", { class: "layer" },
        make("h3", {}, layer.name, make("small", {}, ` ${layer.what} · ${size}`)), pair));
      layer.towers.forEach((tower, k) => pair.append(block(layer, tower, k, layer.towers.length)));
    }
    $("layers").querySelectorAll(".sheet").forEach((sheet) => sheet.draw());
  }

  function block(layer, tower, k, of) {
    const bytes = bytesOf(tower.values), area = layer.height * layer.width;
    const name = towerName(k, of), hue = of === 1 && about.towers.length > 1 ? 2 : k;
    let at = -1, lie = null;
    const canvas = make("canvas", { tabindex: 0, role: "slider", "aria-valuemin": 1, "aria-valuemax": tower.maps, "aria-valuenow": 1,
      "aria-label": `${layer.name}, ${name}: ${tower.maps} ${area > 1 ? "maps" : "values"}` });
    const sheet = make("div", { class: "sheet" }, canvas);
    const strongest = tower.strongest.map((map) => map + 1).join(", ");
    const parts = [`share ${percent(tower.share)}`, `colour ${percent(tower.colour)}`, strongest && `strongest: ${strongest}`];
    const draw = () => {
      const all = sheetOf(bytes, tower.maps, layer.height, layer.width, hue);
      lie = tile(canvas, all, tower.maps, area > 1 ? Math.min(Math.max(2 * layer.width, 22), 44) : 11, tower.strongest, at);
    };
    sheet.draw = () => keep(sheet, draw);
    const choose = (map) => {
      at = Math.min(Math.max(map, 0), tower.maps - 1);
      draw();
      const own = bytes.subarray(at * area, (at + 1) * area);
      let sum = 0, most = -128;
      own.forEach((byte) => {
        sum += byte - 128;
        most = Math.max(most, byte - 128);
      });
      const value = (size) => ((size / 127) * layer.largest).toPrecision(2);
      const said = area > 1 ? `map ${at + 1}: mean ${value(sum / area)}, largest ${value(most)}` : `value ${at + 1}: ${value(most)}`;
      canvas.setAttribute("aria-valuenow", at + 1);
      canvas.setAttribute("aria-valuetext", said);
      const lens = $("lens-map");
      lens.width = layer.width;
      lens.height = layer.height;
      lens.getContext("2d").drawImage(sheetOf(own, 1, layer.height, layer.width, hue), 0, 0);
      lens.setAttribute("aria-label", `${layer.name}, ${name}, map ${at + 1}`);
      $("lens").classList.add("on");
      $("lens-said").textContent = `${layer.name}, ${name}, ${said}`;
    };
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect(), step = lie.side + lie.gap;
      const map = Math.floor((event.clientY - box.top) / step) * lie.columns + Math.floor((event.clientX - box.left) / step);
      if (map !== at && map >= 0 && map < tower.maps) choose(map);
    });
    const leave = () => {
      at = -1;
      draw();
    };
    canvas.addEventListener("pointerleave", leave);
    canvas.addEventListener("blur", leave);
    canvas.addEventListener("focus", () => canvas.matches(":focus-visible") && choose(Math.max(at, 0)));
    canvas.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: lie.columns, ArrowUp: -lie.columns, Home: -Infinity, End: Infinity };
      if (!(event.key in moves)) return;
      event.preventDefault();
      choose(Math.max(at, 0) + moves[event.key]);
    });
    return make("figure", { class: `tower t${hue + 1}` }, sheet, make("figcaption", {}, make("b", {}, name), ` ${parts.filter(Boolean).join(" · ")}`));
  }

  // -- what is taken for what

  const seenFirst = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    seenFirst.disconnect();
    confusion();
  });

  async function confusion() {
    let found;
    try {
      found = await ask(`${home}/confusion`);
    } catch (error) {
      $("confusion-said").textContent = error.message;
      return;
    }
    if (found.error) $("confusion-said").textContent = found.error;
    else if (found.finished) showConfusion(found);
    else {
      $("confusion-said").textContent = found.total ? `Being computed: ${number(found.done)} of ${number(found.total)} validation pictures.` : "The data is being opened …";
      setTimeout(confusion, 700);
    }
  }

  function showConfusion({ classes, rows, mistakes, images, pairs, doubtful }) {
    $("confusion-said").textContent = mistakes
      ? `${number(mistakes)} of ${number(images)} validation pictures are taken for another class.`
      : `None of ${number(images)} validation pictures is taken for another class.`;
    $("square").hidden = !rows;
    if (rows) {
      const head = make("tr", {}, make("td"), ...classes.map((name) => make("th", { scope: "col" }, make("span", {}, name))));
      const body = rows.map((row, i) => {
        const of = Math.max(1, row.reduce((sum, count) => sum + count, 0));
        return make("tr", {}, make("th", { scope: "row" }, classes[i]), ...row.map((count, j) => {
          const cell = make("td", { class: count ? (i === j ? "right" : "wrong") : "" }, count ? number(count) : "");
          if (count) cell.style.setProperty("--share", Math.sqrt(count / of));
          return cell;
        }));
      });
      $("square").replaceChildren(make("table", {},
        make("caption", {}, "A row is what pictures are, a column what they are taken for."), make("thead", {}, head), make("tbody", {}, ...body)));
    }
    const list = (title, pictures) => make("div", { class: "confused" }, make("h3", {}, ...title), make("ul", { class: "thumbs" }, ...pictures));
    $("pairs").replaceChildren(
      ...pairs.map(({ true: own, taken, count, of, pictures }) =>
        list([make("b", {}, own), " taken for ", make("b", {}, taken), make("small", {}, ` ${number(count)} of ${number(of)}`)],
          pictures.map((index) => thumb({ index, label: own })))),
      list(["Least sure of what they are"], doubtful.map((one) => thumb(one, percent(one.probability, 1)))));
  }
}

({ runs: showRuns, run: showRun })[document.body.dataset.page]?.();
