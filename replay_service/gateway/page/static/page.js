// Keeps a page up to date: sections with data-live="seconds" are asked for again, and replaced by htmx.
// Without this script a page shows what was true when it was loaded.
"use strict";

(() => {
  const offline = document.getElementById("offline");
  const due = new WeakMap();

  function refresh(section, now) {
    due.set(section, now + 1000 * Number(section.dataset.live));
    htmx.trigger(section, "refresh");
  }

  function tick() {
    if (document.visibilityState !== "visible") return;
    const now = Date.now();
    for (const section of document.querySelectorAll("[data-live]")) {
      if (!due.has(section)) due.set(section, now + 1000 * Number(section.dataset.live));
      else if (now >= due.get(section)) refresh(section, now);
    }
  }

  // What somebody is reading stays in place: an unanswered request is said, and nothing is replaced by an error.
  function failed(event) {
    const status = event.detail.ctx?.response?.raw?.status ?? event.detail.ctx?.response?.status;
    offline.textContent = status === 401
      ? "You are logged out. Load the page again to log in."
      : `The service does not answer${status ? ` (${status})` : ""}. What you see may be old.`;
    offline.hidden = false;
  }

  document.addEventListener("htmx:error", failed);
  document.addEventListener("htmx:response:error", failed);
  document.addEventListener("htmx:after:swap", () => { offline.hidden = true; });
  document.addEventListener("visibilitychange", tick);
  setInterval(tick, 500);
})();
