"use strict";
// What is decided on the page becomes corrections.csv; nothing leaves the browser.
const cards = Array.from(document.querySelectorAll("[data-sha256]"));
const done = document.getElementById("done");
let unsaved = false;

const field = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
const input = (card) => card.querySelector("input");
const chosen = (card) => input(card).value.trim();

function table() {
  const rows = cards.filter(chosen).map((card) => {
    const { sha256, path, given } = card.dataset;
    return [sha256, path, given, chosen(card)].map(field).join(",");
  });
  return ["sha256,path,given,label", ...rows].join("\n") + "\n";
}

function count() {
  done.textContent = cards.filter(chosen).length;
  for (const card of cards) card.classList.toggle("named", Boolean(chosen(card)));
}

document.getElementById("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
  link.download = "corrections.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  unsaved = false;
});
document.addEventListener("click", (event) => {
  if (!event.target.matches("[data-take]")) return;
  const field = input(event.target.closest("[data-sha256]"));
  field.value = field.value === event.target.dataset.take ? "" : event.target.dataset.take;
  unsaved = true;
  count();
});
document.addEventListener("input", () => {
  unsaved = true;
  count();
});
window.addEventListener("beforeunload", (event) => {
  if (unsaved) event.preventDefault();
});
count();
