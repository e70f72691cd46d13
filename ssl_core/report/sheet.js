"use strict";
// The review sheet: what is typed becomes labels.csv; nothing leaves the browser.
const cards = Array.from(document.querySelectorAll("[data-path]"));
const done = document.getElementById("done");
let unsaved = false;

const field = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
const typed = (card) => card.querySelector("input").value.trim();

function table() {
  const rows = cards.filter(typed).map((card) => {
    const { path, inclusion, stratum } = card.dataset;
    return [path, typed(card), inclusion, stratum].map(field).join(",");
  });
  return ["path,label,inclusion,stratum", ...rows].join("\n") + "\n";
}

function count() {
  done.textContent = cards.filter(typed).length;
  for (const card of cards) card.classList.toggle("named", Boolean(typed(card)));
}

document.getElementById("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
  link.download = document.body.dataset.file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  unsaved = false;
});
document.getElementById("told").addEventListener("change", (event) => {
  document.body.classList.toggle("told", event.target.checked);
});
document.addEventListener("input", (event) => {
  if (event.target.matches("[data-path] input")) unsaved = true;
  count();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !event.target.matches("[data-path] input")) return;
  const next = cards[cards.indexOf(event.target.closest("[data-path]")) + 1];
  if (next) next.querySelector("input").focus();
});
window.addEventListener("beforeunload", (event) => {
  if (unsaved) event.preventDefault();
});
count();
