"use strict";
(() => {
  const suspects = document.getElementById("suspects");
  const cards = Array.from(suspects.querySelectorAll("article"));
  const tally = document.getElementById("tally");
  const save = document.getElementById("save");
  const run = suspects.dataset.run;
  const memory = "imagemill-review " + run;
  const kinds = ["keep", "redo", "reject"];
  const keys = { k: "keep", r: "redo", x: "reject", u: "" };
  const chosen = new Map();
  let saved = true;

  function show(card) {
    const choice = chosen.get(card.dataset.picture) || "";
    for (const button of card.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.choice === choice));
    }
  }

  function count() {
    const parts = [];
    for (const kind of kinds) {
      const number = Array.from(chosen.values()).filter((choice) => choice === kind).length;
      if (number) parts.push(number + " " + kind);
    }
    tally.textContent = parts.length
      ? chosen.size + " of " + cards.length + " decided: " + parts.join(", ") + "."
      : "Nothing chosen yet.";
    save.disabled = !chosen.size;
  }

  function choose(card, choice) {
    if (choice) chosen.set(card.dataset.picture, choice);
    else chosen.delete(card.dataset.picture);
    saved = false;
    try {
      localStorage.setItem(memory, JSON.stringify(Array.from(chosen)));
    } catch { /* The choices live as long as the page. */ }
    show(card);
    count();
  }

  function move(card, step) {
    const next = cards[Math.max(0, Math.min(cards.length - 1, cards.indexOf(card) + step))];
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest" });
  }

  function download() {
    if (!chosen.size) return;
    const choices = { imagemill_review: 1, run_id: run };
    for (const kind of kinds) {
      choices[kind] = cards.map((card) => card.dataset.picture).filter((name) => chosen.get(name) === kind);
    }
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(choices, null, 1) + "\n"], { type: "application/json" }));
    link.download = "imagemill-review-" + run + ".json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    saved = true;
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    const card = document.activeElement.closest("article");
    const steps = { arrowright: 1, arrowdown: 1, arrowleft: -1, arrowup: -1 };
    if (key in steps) {
      if (card) move(card, steps[key]);
      else move(cards[0], 0);
    } else if (key in keys && card) {
      choose(card, keys[key]);
      if (keys[key]) move(card, 1);
    } else if (key === "s") {
      download();
    } else {
      return;
    }
    event.preventDefault();
  });

  suspects.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const card = button.closest("article");
    choose(card, button.getAttribute("aria-pressed") === "true" ? "" : button.dataset.choice);
  });
  save.addEventListener("click", download);
  window.addEventListener("beforeunload", (event) => {
    if (!saved) event.preventDefault();
  });

  try {
    const names = new Set(cards.map((card) => card.dataset.picture));
    for (const [name, choice] of JSON.parse(localStorage.getItem(memory) || "[]")) {
      if (names.has(name) && kinds.includes(choice)) chosen.set(name, choice);
    }
  } catch { /* Nothing is remembered. */ }
  for (const card of cards) {
    for (const button of card.querySelectorAll("button")) button.disabled = false;
    show(card);
  }
  count();
  cards[0].focus({ preventScroll: true });
})();
