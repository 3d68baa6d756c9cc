// Keeps a page up to date: sections with data-live="seconds" are asked for again, and replaced by htmx. Where a section
// names a run, its events (server-sent) say when there is something new, and the seconds matter only without them.
// Without this script a page shows what was true when it was loaded.
"use strict";

(() => {
  const LEAST_MS = 2000;
  const offline = document.getElementById("offline");
  const askedAt = new WeakMap();
  let stream = null;
  let hasNews = false;

  const follows = section => stream?.readyState === EventSource.OPEN && section.dataset.run && section.id === "live";

  function isDue(section, now) {
    if (!askedAt.has(section)) askedAt.set(section, now);
    const waited = now - askedAt.get(section);
    if (follows(section)) return waited >= (hasNews ? LEAST_MS : 15000);
    return waited >= 1000 * Number(section.dataset.live);
  }

  function tick() {
    if (document.visibilityState !== "visible") return;
    const now = Date.now();
    for (const section of document.querySelectorAll("[data-live]")) {
      if (!isDue(section, now)) continue;
      if (section.id === "live") hasNews = false;
      askedAt.set(section, now);
      htmx.trigger(section, "refresh");
    }
  }

  // A page that nobody looks at follows nothing: the service lets only so many follow at a time.
  function follow() {
    const live = document.querySelector("#live[data-run]");
    if (document.visibilityState !== "visible") {
      stream?.close();
      stream = null;
    } else if (live && !stream) {
      stream = new EventSource(`/v1/runs/${live.dataset.run}/events?after=${live.dataset.asOf}`);
      for (const kind of live.dataset.kinds.split(" ")) stream.addEventListener(kind, () => { hasNews = true; });
    }
    tick();
  }

  // What somebody is reading stays in place: an unanswered request is said, and nothing is replaced by an error.
  function failed(event) {
    const ctx = event.detail.ctx;
    const status = ctx?.response?.status;
    const reason = status && new DOMParser().parseFromString(ctx.text ?? "", "text/html").querySelector("main p");
    offline.textContent = status === 401
      ? "You are logged out. Load the page again to log in."
      : `The service does not answer${status ? ` (${status})` : ""}${reason ? `: ${reason.textContent}` : ""}. `
        + "What you see may be old.";
    offline.hidden = false;
  }

  // An error is followed by a swap of nothing.
  function swapped(event) {
    if (!(event.detail.ctx?.response?.status >= 400)) offline.hidden = true;
  }

  document.addEventListener("htmx:error", failed);
  document.addEventListener("htmx:response:error", failed);
  document.addEventListener("htmx:after:swap", swapped);
  document.addEventListener("visibilitychange", follow);
  follow();
  setInterval(tick, 500);
})();
