"use strict";

// The widget's HTML escapes all that it shows, and this page allows no script but this file.
const state = document.getElementById("state");
const widget = document.getElementById("widget");
let shown = "";

async function refresh() {
  try {
    const answer = await fetch("/widget");
    const text = await answer.text();
    if (answer.ok && text !== shown) {
      widget.innerHTML = text;
      shown = text;
    }
    state.textContent = answer.ok ? `Read-only, as of ${new Date().toLocaleTimeString()}` : `Not up to date: ${text}`;
  } catch (error) {
    state.textContent = "Not up to date: the console was stopped";
  }
  setTimeout(refresh, 3000);
}

refresh();
