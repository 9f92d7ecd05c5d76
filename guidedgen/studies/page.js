"use strict";
const all = (query, within = document) => [...within.querySelectorAll(query)];
const one = (query) => document.querySelector(query);

// Tables: a click on a column's head sorts by it, largest first, and again the other way. Runs without a figure stay last.
for (const button of all("thead button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, table = head.closest("table");
    const ascending = head.getAttribute("aria-sort") === "descending";
    for (const other of all("th", table)) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const figure = (body) => body.rows[0].cells[head.cellIndex].dataset.value;
    const sign = ascending ? 1 : -1;
    const bodies = [...table.tBodies].sort((one, other) => {
      const [x, y] = [figure(one), figure(other)];
      return x === undefined || y === undefined ? (x === undefined) - (y === undefined) : sign * (x - y);
    });
    table.append(...bodies);
  });
}

// Pictures: those of prompts that have every word that is asked for.
const filter = one("#filter");
if (filter) {
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const pair of all("[data-prompt]")) {  // links included
      const prompt = pair.dataset.prompt.toLowerCase();
      pair.hidden = !words.every((word) => prompt.includes(word));
      found += !pair.hidden;
    }
    one("#found").value = words.length ? `${found} found` : "";
  });
}

// A click enlarges a picture, next to the unguided one that it is paired with; arrows go on to the other runs.
const viewer = one("#viewer");
let current = null;

const fill = (side, shot) => {
  side.hidden = !shot;
  if (!shot) return;
  side.querySelector("img").src = shot.querySelector("img").src;
  side.querySelector("img").alt = shot.querySelector("img").alt;
  side.querySelector("b").textContent = shot.dataset.name;
  side.querySelector("span").textContent = shot.dataset.scores;
};

const show = (shot) => {
  current = shot;
  const pair = shot.closest(".pair");
  const unguided = all(".shot[data-unguided]", pair).find((other) => other.dataset.setting === shot.dataset.setting);
  one("#prompt").textContent = pair.querySelector("h3").textContent;
  fill(one("#before"), unguided === shot ? null : unguided);
  fill(one("#after"), shot);
  one("#file").href = shot.dataset.link;
  if (!viewer.open) viewer.showModal();
};

const go = (by) => {
  const shots = all(".shot", current.closest(".pair"));
  show(shots[(shots.indexOf(current) + by + shots.length) % shots.length]);
};

for (const shot of all(".shot")) shot.addEventListener("click", () => show(shot));
one("#previous").addEventListener("click", () => go(-1));
one("#next").addEventListener("click", () => go(1));
one("#close").addEventListener("click", () => viewer.close());
viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") go(-1);
  if (event.key === "ArrowRight") go(1);
});

// A link to a run opens what is behind it.
const open = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.tagName === "DETAILS") target.open = true;
};
addEventListener("hashchange", open);
open();
