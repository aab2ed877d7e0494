"use strict";
// Sorting: the first click puts the best on top (the table says per column what is better), the next reverses.
// Cells without a value stay at the end either way.
(() => {
  const table = document.getElementById("results");
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[1].cells];

  const key = (row, column) => row.cells[column] && row.cells[column].dataset.sort;

  function compare(a, b, better) {
    if (!a || !b) return (a ? 0 : 1) - (b ? 0 : 1);
    const [x, y] = [Number(a), Number(b)];
    if (Number.isNaN(x) || Number.isNaN(y)) return a.localeCompare(b);
    const target = Number(better);
    if (better !== "low" && better !== "high" && !Number.isNaN(target)) return Math.abs(x - target) - Math.abs(y - target);
    return better === "high" ? y - x : x - y;
  }

  headers.forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      const reversed = header.dataset.order === "best first";
      for (const other of headers) {
        other.setAttribute("aria-sort", "none");
        delete other.dataset.order;
      }
      header.dataset.order = reversed ? "worst first" : "best first";
      header.setAttribute("aria-sort", (header.dataset.better === "high") !== reversed ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [key(row, column), row]);
      rows.sort(([a], [b]) => {
        const order = compare(a, b, header.dataset.better || "text");
        return reversed && a && b ? -order : order;
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
})();
