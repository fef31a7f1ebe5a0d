"use strict";

// A click on a column's head sorts its table: numbers by data-value, everything else as text.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement;
    const column = Array.prototype.indexOf.call(head.parentElement.children, head);
    const rows = head.closest("table").tBodies[0];
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const keyOf = (row) => {
      const cell = row.cells[column];
      const holder = cell.hasAttribute("data-value") ? cell : shownValue(cell);
      return holder ? Number(holder.getAttribute("data-value")) : cell.textContent;
    };
    const keyed = Array.from(rows.rows, (row) => [keyOf(row), row]);
    const compare = (a, b) =>
      typeof a === "number" && typeof b === "number"
        ? a - b
        : String(a).localeCompare(String(b), undefined, { numeric: true });
    keyed.sort((a, b) => (ascending ? compare(a[0], b[0]) : compare(b[0], a[0])));
    rows.append(...keyed.map((pair) => pair[1]));
  });
}

// A cell may hold a figure of each kind, of which one is shown.
function shownValue(cell) {
  return Array.from(cell.querySelectorAll("[data-value]")).find((each) => each.offsetParent !== null);
}

// Which figure the bars show.
for (const choice of document.querySelectorAll(".switch input")) {
  choice.addEventListener("change", () => {
    document.getElementById(choice.name).setAttribute("data-figure", choice.value);
  });
}

// Typing filters the rows of a table.
for (const field of document.querySelectorAll("input[type=search]")) {
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    for (const row of document.getElementById(field.dataset.filters).tBodies[0].rows) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
    }
  });
}
