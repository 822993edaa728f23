"use strict";
// Text from files is written as text, never as markup; what is written as markup is numbers.

const json = (element) => JSON.parse(document.getElementById(element.dataset.json).textContent);

const make = (name, text = "", className = "") => {
  const element = document.createElement(name);
  element.textContent = text;
  if (className) element.className = className;
  return element;
};

const drawing = (markup, attributes) => {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [name, value] of Object.entries(attributes)) svg.setAttribute(name, value);
  svg.innerHTML = markup;
  return svg;
};

const fillTable = (table, caption, headings, rows) => {
  const head = make("tr");
  for (const [heading, className] of headings) {
    const cell = make("th", heading, className);
    cell.scope = "col";
    head.append(cell);
  }
  const thead = make("thead");
  thead.append(head);
  const body = make("tbody");
  for (const row of rows) {
    const tr = make("tr");
    tr.append(...row);
    body.append(tr);
  }
  table.replaceChildren(make("caption", caption), thead, body);
};

// --- Tables that sort by a heading: numbers before texts, what is empty last.

const compare = (a, b) => {
  if (a === "" || b === "") return (a === "") - (b === "");
  const numeric = Number(a) - Number(b);
  return Number.isNaN(numeric) ? a.localeCompare(b, "en", { numeric: true }) : numeric;
};

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  for (const button of table.querySelectorAll("thead button")) {
    button.addEventListener("click", () => {
      const heading = button.closest("th");
      const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
      const value = (row) => row.cells[heading.cellIndex].dataset.value;
      const sorted = [...body.rows].sort((a, b) => {
        const empty = value(a) === "" || value(b) === "";
        return (empty ? 1 : direction) * compare(value(a), value(b));
      });
      body.append(...sorted);
    });
  }
}

// --- Search fields: one for a table of many classes, and one for a chooser of many samples.

const matches = (text, wanted) => text.toLowerCase().includes(wanted.trim().toLowerCase());

for (const find of document.querySelectorAll("input.find")) {
  const chooser = find.closest(".chooser");
  const rows = [...chooser.nextElementSibling.querySelectorAll("tbody tr")];
  const show = () => {
    for (const row of rows) row.hidden = !matches(row.cells[0].textContent, find.value);
    chooser.querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} classes`;
  };
  find.addEventListener("input", show);
  show();
}

for (const select of document.querySelectorAll("select.sample")) {
  const options = [...select.options];
  if (options.length <= 20) continue;
  const label = make("label", "find a sample ");
  const find = make("input");
  find.type = "search";
  label.append(find);
  select.closest(".chooser").prepend(label);
  find.addEventListener("input", () => {
    const chosen = select.value;
    const left = options.filter((option) => matches(option.textContent, find.value));
    if (!left.length) return;
    select.replaceChildren(...left);
    select.value = left.some((option) => option.value === chosen) ? chosen : left[0].value;
    select.dispatchEvent(new Event("change"));
  });
}

// --- A sweep: the mean of a metric for each pair of values of two keys.

for (const element of document.querySelectorAll(".sweep")) {
  const { keys, metrics, runs } = json(element);
  const choose = (name, options, at) => {
    const select = element.querySelector(`select.${name}`);
    select.append(...options.map((option) => make("option", option)));
    select.selectedIndex = at;
    select.addEventListener("change", show);
    return select;
  };
  const show = () => {
    const down = keys[rows.selectedIndex];
    const across = keys[columns.selectedIndex];
    const wanted = metrics[metric.selectedIndex];
    const values = (key) => [...new Set(runs.map((run) => run.settings[key]))].sort(compare);
    const mean = (a, b) => {
      const found = runs
        .filter((run) => run.settings[down] === a && run.settings[across] === b && run.metrics[wanted] !== undefined)
        .map((run) => run.metrics[wanted]);
      return { count: found.length, value: found.reduce((sum, value) => sum + value, 0) / found.length };
    };
    const grid = values(down).map((a) => values(across).map((b) => mean(a, b)));
    const known = grid.flat().filter(({ count }) => count).map(({ value }) => value);
    const low = Math.min(...known);
    const span = Math.max(...known) - low || 1;
    const body = values(down).map((a, i) => {
      const heading = make("th", a);
      heading.scope = "row";
      const cells = grid[i].map(({ count, value }) => {
        const cell = make("td", count ? value.toFixed(4) : "–", "number cell");
        cell.style.setProperty("--v", count ? `${(5 + (40 * (value - low)) / span).toFixed(1)}%` : "0%");
        if (count > 1) cell.append(make("small", `${count} runs`));
        return cell;
      });
      return [heading, ...cells];
    });
    fillTable(element.querySelector("table"), `${wanted}, by ${down} (rows) and ${across} (columns)`, [[down, ""], ...values(across).map((value) => [value, "number"])], body);
  };
  const rows = choose("rows", keys, 0);
  const columns = choose("columns", keys, 1);
  const metric = choose("metric", metrics, 0);
  show();
}

// --- Inside the samples: attention maps of a layer and head, and nearest tokens.

const TITLES = { label: "Attention label", before: "Learner before fine-tuning", after: "Learner after fine-tuning" };

const unpack = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
const shares = (levels) => Array.from(levels, (level) => (level / 255) ** 2);

for (const element of document.querySelectorAll(".inside")) {
  const view = json(element);
  const { length, attention, tokens } = view;
  element.querySelector(".scriptless")?.remove();
  const selected = (name) => Number(element.querySelector(`select.${name}`)?.value ?? 0);
  const maps = attention && Object.fromEntries(Object.entries(attention.maps).map(([name, text]) => [name, unpack(text)]));
  const rowCount = attention?.rows.length;
  const byHead = rowCount === 1;

  // Rows of a map, each `length` probabilities: of all heads of the layer, or all query rows of the head.
  const rowsOf = (name, sample, layer, head) => {
    const first = ((sample * attention.layers + layer) * attention.heads + (byHead ? 0 : head)) * rowCount;
    const count = byHead ? attention.heads : rowCount;
    return Array.from({ length: count }, (_, i) => shares(maps[name].subarray((first + i) * length, (first + i + 1) * length)));
  };

  const axis = () => {
    const line = make("div", "", "axis");
    line.setAttribute("aria-hidden", "true");
    const middle = Math.floor((length - 1) / 2);
    line.append(...[...new Set([0, middle, length - 1])].map((position) => make("span", position)));
    return line;
  };

  const map = (name, rows, head, strongest) => {
    const height = Math.max(3, Math.min(17, 300 / rows.length));
    const cells = rows.flatMap((row, i) =>
      row.map((share, k) => {
        const opacity = Math.sqrt(share / strongest);
        return opacity < 0.02 ? "" : `<rect class="cell" x="${k}" y="${i}" width="1.02" height="1.02" fill-opacity="${opacity.toFixed(2)}"/>`;
      }),
    );
    const picked = byHead ? `<rect class="picked" x="0" y="${head}" width="${length}" height="1"/>` : "";
    const svg = drawing(cells.join("") + picked, {
      viewBox: `0 0 ${length} ${rows.length}`,
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": `${TITLES[name]}: ${byHead ? "a row for each head" : "a row for each query position"}, a column for each key position`,
      style: `height: ${Math.round(height * rows.length)}px`,
    });
    svg.addEventListener("click", (event) => {
      if (!byHead) return;
      const box = svg.getBoundingClientRect();
      const row = Math.floor(((event.clientY - box.top) / box.height) * rows.length);
      element.querySelector("select.head").selectedIndex = Math.max(0, Math.min(rows.length - 1, row));
      show();
    });
    const names = byHead ? rows.map((_, i) => i) : attention.rows;
    const every = Math.ceil(names.length / 18);
    const side = make("div", "", "rows");
    side.setAttribute("aria-hidden", "true");
    side.append(...names.filter((_, i) => i % every === 0).map((row) => make("span", row, byHead && row === head ? "picked-row" : "")));
    const grid = make("div", "", byHead ? "map heads" : "map");
    grid.append(side, svg, axis());
    const figure = make("figure");
    figure.append(make("figcaption", TITLES[name]), grid);
    return figure;
  };

  const profile = (head, all) => {
    const lines = Object.entries(all).map(([name, rows]) => [name, rows[head]]);
    const top = Math.max(...lines.flatMap(([, row]) => row)) || 1;
    const steps = (row) => row.map((share, k) => `${k},${(100 - (100 * share) / top).toFixed(2)} ${k + 1},${(100 - (100 * share) / top).toFixed(2)}`).join(" ");
    const markup = lines.map(([name, row], i) =>
      name === "label" ? `<polygon class="area" points="0,100 ${steps(row)} ${length},100"/>` : `<g class="s${i}"><polyline points="${steps(row)}"/></g>`,
    );
    const svg = drawing(markup.join(""), {
      viewBox: `0 0 ${length} 100`,
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": `Attention of head ${head} by position; its strongest positions are in the table below`,
    });
    const figure = element.querySelector(".profile");
    figure.hidden = false;
    figure.querySelector("figcaption").textContent = `Head ${head}, attention from the first position to each position; the top is ${top.toFixed(2)}`;
    const legend = make("ul", "", "legend");
    legend.append(
      ...lines.map(([name], i) => {
        const item = make("li");
        const swatch = name === "label" ? '<rect class="area" width="26" height="10"/>' : '<line x1="1" x2="25" y1="5" y2="5"/>';
        item.append(drawing(swatch, { class: `swatch s${i}`, viewBox: "0 0 26 10", "aria-hidden": "true" }), TITLES[name]);
        return item;
      }),
    );
    figure.querySelector(".plot").replaceChildren(svg, axis(), legend);
  };

  const nearest = (sample, position) => tokens?.nearest[sample][position][0][0] ?? "";

  const showAttention = (sample, layer, head) => {
    const all = Object.fromEntries(Object.keys(maps).map((name) => [name, rowsOf(name, sample, layer, head)]));
    const strongest = Math.max(...Object.values(all).flat(2)) || 1;
    element.querySelector(".maps").replaceChildren(...Object.entries(all).map(([name, rows]) => map(name, rows, head, strongest)));
    if (byHead) profile(head, all);
    const top = attention.strongest[sample][layer][head];
    const [row, position, share] = top[0];
    const weight = attention.weighted ? ` Its row counts ${top[0].at(-1).toFixed(2)} times in the attention loss, 1 at the start.` : "";
    const kl = Object.entries(attention.divergence).map(([name, values]) => `${values[sample][layer][head].toFixed(3)} ${name}`);
    element.querySelector(".readout").textContent =
      `${view.shown[sample]}, layer ${layer}, head ${head}: its strongest label is ${share.toFixed(3)}, ` +
      `from position ${row} to position ${position}.${weight}` + (kl.length ? ` KL(label ‖ attention): ${kl.join(", ")} fine-tuning.` : "");
    const numbers = (names) => names.map((name) => [name, "number"]);
    const headings = [...numbers(["from", "to"]), ...(tokens ? [["nearest token", ""]] : []), ...numbers([...Object.keys(maps), ...(attention.weighted ? ["weight"] : [])])];
    const body = top.map(([from, to, ...values]) => [
      make("td", from, "number"),
      make("td", to, "number"),
      ...(tokens ? [make("td", nearest(sample, to))] : []),
      ...values.map((value) => make("td", value.toFixed(3), "number")),
    ]);
    fillTable(element.querySelector(".strongest"), "The strongest attention labels of this head", headings, body);
  };

  const showTokens = (sample) => {
    const items = tokens.nearest[sample].map((near, position) => {
      const [[token, cosine], ...others] = near;
      const item = make("li");
      const bar = make("span", "", "similarity");
      const fill = make("i");
      fill.style.width = `${Math.max(0, 100 * cosine).toFixed(0)}%`;
      bar.append(fill);
      const rest = make("small");
      others.forEach(([other, similarity], i) => rest.append(i ? ", " : "", make("bdi", other), ` ${similarity.toFixed(2)}`));
      item.append(make("span", position, "position"), make("bdi", token, "nearest"), ` ${cosine.toFixed(2)}`, bar, rest);
      return item;
    });
    element.querySelector(".tokens").replaceChildren(...items);
  };

  const show = () => {
    const sample = selected("sample");
    if (maps) showAttention(sample, selected("layer"), selected("head"));
    if (tokens) showTokens(sample);
  };
  for (const select of element.querySelectorAll("select")) select.addEventListener("change", show);
  if (maps || tokens) show();
}
