"use strict";
// Tables that can be sorted, and lines that can be opened. Without it, all lines are open.
document.documentElement.className = "active";

function open(button, opened) {
  button.setAttribute("aria-expanded", String(opened));
  document.getElementById(button.getAttribute("aria-controls")).hidden = !opened;
}

function key(body, column) {
  const text = body.rows[0].cells[column].dataset.key;
  if (text === undefined) return undefined;
  return text === "" || Number.isNaN(Number(text)) ? text : Number(text);
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sort(head) {
  const table = head.closest("table");
  const column = head.cellIndex;
  const before = head.getAttribute("aria-sort");
  // Numbers are most asked for from the largest on, names from A on.
  const first = head.classList.contains("number") ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = before === first ? other : first;
  const sign = order === "ascending" ? 1 : -1;
  const lines = [...table.tBodies].map((body) => [key(body, column), body]);
  lines.sort(([a], [b]) => {
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    return sign * compare(a, b);
  });
  for (const [, body] of lines) table.append(body);
  for (const cell of head.parentElement.cells) cell.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  document.getElementById("told").textContent = `Sorted by ${head.textContent}, ${order}`;
}

function follow() {
  const body = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const button = body && body.tagName === "TBODY" && body.querySelector("button.opener");
  if (!button) return;
  open(button, true);
  button.focus({ preventScroll: true });
}

document.addEventListener("DOMContentLoaded", () => {
  for (const button of document.querySelectorAll("button.opener")) open(button, false);
  follow();
});
window.addEventListener("hashchange", follow);
document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.classList.contains("opener")) {
    open(button, button.getAttribute("aria-expanded") === "false");
  } else if (button.dataset.every) {
    const section = button.closest("section");
    for (const each of section.querySelectorAll("button.opener")) {
      open(each, button.dataset.every === "true");
    }
  } else if (button.closest("thead")) {
    sort(button.closest("th"));
  }
});
