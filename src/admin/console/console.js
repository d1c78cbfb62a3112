// What is live on the pages; without it they are complete. Whatever a stranger may have written is set as text.
"use strict";

const theme = {
  get chosen() { try { return localStorage.getItem("theme"); } catch { return null; } },
  set chosen(name) { try { localStorage.setItem("theme", name); } catch { /* not kept, then */ } },
  show() { if (this.chosen) document.documentElement.dataset.theme = this.chosen; },
};
theme.show();

document.addEventListener("DOMContentLoaded", () => {
  enliven(document);
  document.addEventListener("click", clicked);
  document.addEventListener("submit", asked);
  document.addEventListener("keydown", typed);
  const tail = document.querySelector("[data-live-toggle]");
  if (tail) tail.hidden = false;
  refresh();
});

// Times by the reader's clock, and buttons that take a script.
function enliven(within) {
  for (const time of within.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (!Number.isNaN(at.getTime())) time.textContent = shown(at);
  }
  for (const button of within.querySelectorAll("[data-copy]")) button.hidden = false;
}

function shown(at) {
  const two = (n) => String(n).padStart(2, "0");
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

function clicked(event) {
  const button = event.target.closest("button");
  if (!button) return;
  if ("themeToggle" in button.dataset) {
    const dark = getComputedStyle(document.body).backgroundColor;
    const isDark = (dark.match(/\d+/g) ?? [255]).slice(0, 3).every((part) => part < 128);
    theme.chosen = isDark ? "light" : "dark";
    document.documentElement.dataset.theme = isDark ? "light" : "dark";
  } else if ("copy" in button.dataset) {
    copy(button, document.getElementById(button.dataset.copy));
  } else if ("liveToggle" in button.dataset) {
    watch(button);
  }
}

async function copy(button, from) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(from.textContent);
    button.textContent = "Copied";
  } catch {
    // Without TLS a browser gives no clipboard: the text is marked, to be copied by hand.
    from.closest("details")?.setAttribute("open", "");
    getSelection().selectAllChildren(from);
    button.textContent = "Marked: copy it";
  }
  setTimeout(() => { button.textContent = before; }, 3000);
}

function asked(event) {
  const question = event.target.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
}

// "/" goes to the search.
function typed(event) {
  const search = document.querySelector("[data-search]");
  if (event.key !== "/" || !search || event.target.closest("input, select, textarea")) return;
  event.preventDefault();
  search.focus();
}

// A part of the page that is asked for anew every so many seconds.
async function refresh() {
  const part = document.querySelector("[data-refresh]");
  if (!part) return;
  await new Promise((done) => setTimeout(done, part.dataset.refresh * 1000));
  const isBusy = part.contains(document.activeElement) && document.activeElement !== document.body;
  if (!document.hidden && !isBusy) {
    try {
      const answer = await fetch(location.href, { redirect: "error" });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const next = page.querySelector("[data-refresh]");
      const last = page.querySelector("#main");
      if (answer.ok && next) {
        part.replaceWith(next);
        enliven(next);
      } else if (answer.ok && last) {
        // It is over: the last word, and no more questions.
        document.querySelector("#main").replaceWith(last);
        enliven(last);
        return;
      }
    } catch { /* the gateway is away, or the session over; the next time tells */ }
  }
  refresh();
}

const ROWS = 200;
let source = null;

function watch(button) {
  const said = document.querySelector("[data-live-state]");
  const rows = document.querySelector("[data-live-rows]");
  if (source) {
    source.close();
    source = null;
    button.setAttribute("aria-pressed", "false");
    said.textContent = "";
    return;
  }
  source = new EventSource("/live");
  button.setAttribute("aria-pressed", "true");
  said.textContent = "connecting…";
  source.addEventListener("open", () => { said.textContent = "live: the newest come first, whatever the search, except for its source"; });
  source.addEventListener("error", () => {
    if (source.readyState !== EventSource.CLOSED) {
      said.textContent = "not connected; trying again";
      return;
    }
    // It was refused: the browser does not ask again.
    source = null;
    button.setAttribute("aria-pressed", "false");
    said.textContent = "refused: the session is over, or too many watch; load the page and try again";
  });
  source.addEventListener("delivery", (event) => arrived(rows, JSON.parse(event.data)));
  source.addEventListener("attempt", (event) => attempted(rows, JSON.parse(event.data)));
}

function arrived(rows, delivery) {
  if (rows.dataset.source && rows.dataset.source !== delivery.source) return;
  if (rowOf(rows, delivery.id)) return;
  const link = make("a", shown(new Date(delivery.received_at)));
  link.href = `/deliveries/${encodeURIComponent(delivery.id)}`;
  const forwards = make("td");
  forwards.className = "forwards";
  for (const destination of delivery.destinations) {
    const one = make("span", `${destination} `);
    one.dataset.to = destination;
    one.append(badge("in_flight"));
    forwards.append(one, " ");
  }
  if (delivery.destinations.length === 0) forwards.append(badge("unrouted"));
  const row = make("tr");
  row.dataset.id = delivery.id;
  row.className = "fresh";
  const cells = [link, delivery.source, odd(delivery.event ?? "–"), odd(delivery.delivery_id ?? "–"), "–", "–"];
  for (const content of cells) {
    const cell = make("td");
    cell.append(content);
    row.append(cell);
  }
  row.append(forwards);
  rows.prepend(row);
  document.querySelector("[data-empty]")?.remove();
  while (rows.children.length > ROWS) rows.lastElementChild.remove();
  setTimeout(() => { row.className = ""; }, 2000);
}

function attempted(rows, attempt) {
  const row = rowOf(rows, attempt.id);
  const one = row && [...row.querySelectorAll("[data-to]")].find((each) => each.dataset.to === attempt.destination);
  one?.querySelector(".state")?.replaceWith(badge(attempt.state));
}

function rowOf(rows, id) {
  return [...rows.children].find((row) => row.dataset.id === id);
}

function badge(state) {
  const kinds = { delivered: "good", dead: "bad", waiting: "mind", in_flight: "mind", unrouted: "mind" };
  const one = make("span", state.replaceAll("_", " "));
  one.className = `state ${kinds[state] ?? "dim"}`;
  return one;
}

// What cannot be seen is shown by its number, as the server does.
function odd(text) {
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g,
    (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
}

function make(name, text) {
  const one = document.createElement(name);
  if (text !== undefined) one.textContent = text;
  return one;
}
