/* Deploy Portal: what the pages do beyond htmx. Everything here is an extra; the pages work without it. */
(() => {
  "use strict";
  const $ = (selector, from = document) => from.querySelector(selector);
  const $$ = (selector, from = document) => from.querySelectorAll(selector);
  const setText = (el, text) => { if (el.textContent !== text) el.textContent = text; };

  // --- Time: the server's clock, so that a wrong clock here shows no nonsense ---
  const navigation = performance.getEntriesByType("navigation")[0];
  const rendered = Number(document.body.dataset.now) * 1000;
  const arrived = performance.timeOrigin + (navigation ? navigation.responseStart : 0);
  const skew = rendered && Number.isFinite(arrived) ? arrived - rendered : 0;

  function span(seconds) {
    if (!Number.isFinite(seconds)) return "";
    const s = Math.max(0, Math.floor(seconds)), m = Math.floor(s / 60), h = Math.floor(m / 60);
    if (s < 60) return `${s} s`;
    if (m < 60) return `${m} m ${s % 60} s`;
    return h < 24 ? `${h} h ${m % 60} m` : `${Math.floor(h / 24)} d ${h % 24} h`;
  }

  function tick() {
    for (const el of $$("time[data-since]")) {
      const text = span((Date.now() - skew - Date.parse(el.dataset.since)) / 1000);
      if (text) setText(el, text + (el.dataset.after || ""));
    }
  }

  function localTimes() {
    for (const el of $$("time[datetime]:not([title])")) {
      const at = new Date(el.dateTime);
      if (Number.isNaN(at.getTime())) continue;
      el.title = at.toLocaleString([], { dateStyle: "full", timeStyle: "long" });
      if (el.dataset.local === "clock") setText(el, at.toLocaleTimeString([], { hourCycle: "h23" }));
      if (el.dataset.local === "day") setText(el, at.toLocaleString([], { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" }));
    }
    for (const el of $$("[data-seconds]")) if (el.dataset.seconds >= 60) setText(el, span(Number(el.dataset.seconds)));
  }

  // --- After each swap: tab, announcement, failure card, log ---
  const live = () => $("#live");
  const over = () => !!live() && live().hasAttribute("data-done");
  const scrolledUp = new WeakSet();
  let announced = live() ? live().dataset.announce : "", failed = !!$("#failure");

  function follow(from = document) {
    for (const log of $$("details[open] [data-follow]", from)) if (!scrolledUp.has(log)) log.scrollTop = log.scrollHeight;
  }

  function refresh() {
    localTimes();
    tick();
    follow();
    const root = live(), icon = $("#favicon");
    if (!root) return;
    if (root.dataset.title) document.title = root.dataset.title;
    const href = icon.dataset[root.dataset.favicon];
    if (href && icon.getAttribute("href") !== href) icon.setAttribute("href", href);
    if (root.dataset.announce !== announced) setText($("#announce"), announced = root.dataset.announce || "");
    if ($("#failure") && !failed) $("#failure").focus();
    failed = !!$("#failure");
    for (const el of $$("#chip, [data-while-running]")) el.hidden = over();
  }

  document.addEventListener("scroll", ({ target }) => {
    if (!target.matches || !target.matches("[data-follow]")) return;
    const atEnd = target.scrollHeight - target.scrollTop - target.clientHeight < 24;
    if (atEnd) scrolledUp.delete(target); else scrolledUp.add(target);
  }, true);
  document.addEventListener("toggle", ({ target }) => follow(target.parentElement || document), true);

  // --- Morphing keeps what the person did: folds, ticking times, a button that says "Copied" ---
  const touched = new Set(), busy = new WeakSet();
  Object.assign(Idiomorph.defaults.callbacks, {
    beforeAttributeUpdated: (name, el) => !(name === "open" && touched.has(el.id)),
    beforeNodeMorphed(old, fresh) {
      if (old.nodeType !== Node.ELEMENT_NODE || !fresh.getAttribute) return true;
      if (busy.has(old)) return false;
      if (old.id === "live" && Number(fresh.dataset.version) < Number(old.dataset.version)) return false;
      const same = (name) => old.getAttribute(name) === fresh.getAttribute(name);
      if (old.localName === "time" && old.title) {
        if (same("datetime") && same("data-since") && same("data-local")) return false;
      }
      return true;
    },
    afterNodeMorphed(node) { if (node.id === "live" || node.id === "stacks") refresh(); },
  });

  document.addEventListener("click", async (event) => {
    const summary = event.target.closest("summary"), copy = event.target.closest("[data-copy]"), fill = event.target.closest("[data-fill]");
    if (summary && summary.parentElement.id) touched.add(summary.parentElement.id);
    if (fill && $("#id_name")) {
      event.preventDefault();
      $("#id_name").value = fill.dataset.fill;
      $("#id_name").dispatchEvent(new Event("input", { bubbles: true }));
      $("#id_name").focus();
    }
    if (!copy || busy.has(copy)) return;
    const label = $("[data-copy-label]", copy) || copy, before = label.textContent;
    busy.add(copy);
    setText(label, await write(copy.dataset.copy) ? "Copied" : "Could not copy");
    setTimeout(() => { setText(label, before); busy.delete(copy); }, 2000);
  });

  async function write(text) {
    try { await navigator.clipboard.writeText(text); return true; } catch { /* no clipboard without TLS: the old way */ }
    const area = Object.assign(document.createElement("textarea"), { value: text, className: "visually-hidden" }), focused = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (focused) focused.focus({ preventScroll: true });
    return done;
  }

  // --- Connection: socket first, polling when it does not come (back) within 5 s ---
  htmx.config.wsReconnectDelay = (attempt) => 500 + Math.random() * Math.min(10000, 1000 * 2 ** attempt);
  const EVERY = 5000, QUIET = 20000, RETRIED_BY_HTMX = [1006, 1011, 1012, 1013];
  const shell = $("[ws-connect]"), poll = $("#poll"), chip = $("#chip");
  let open = false, grace = 0, timer = 0, heard = Date.now();

  const say = (state) => { if (chip) { chip.dataset.state = state; setText(chip, chip.dataset[state]); } };
  const ask = () => { if (poll && !over()) htmx.trigger(poll, "portal:poll"); };
  const stop = () => { clearTimeout(grace); clearInterval(timer); grace = timer = 0; };
  const start = () => { grace = 0; timer = setInterval(() => over() ? stop() : ask(), EVERY); ask(); };
  const lost = () => {
    if (open) say("lost");
    open = false;
    if (!grace && !timer && !over()) grace = setTimeout(start, EVERY);
  };

  if (shell) {
    grace = setTimeout(start, EVERY);
    shell.addEventListener("htmx:wsOpen", () => { open = true; heard = Date.now(); stop(); say("live"); });
    shell.addEventListener("htmx:wsAfterMessage", () => { heard = Date.now(); });
    shell.addEventListener("htmx:wsError", lost);
    shell.addEventListener("htmx:wsClose", ({ detail }) => {
      lost();
      if (detail.event.code < 4000 && !RETRIED_BY_HTMX.includes(detail.event.code)) setTimeout(() => over() || detail.socketWrapper.reconnect(), 2000 + Math.random() * 6000);
    });
    document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
    window.addEventListener("online", ask);
  }
  if (poll) poll.addEventListener("htmx:afterRequest", ({ detail }) => { if (!open) say(detail.successful ? "poll" : "lost"); });

  // --- A button that led nowhere (a stale page, a session that is over): the page behind it says why ---
  document.addEventListener("htmx:afterRequest", ({ detail: { elt, requestConfig, xhr } }) => {
    if (requestConfig.verb === "post" && xhr.status && !xhr.getResponseHeader("HX-Redirect")) location.assign(elt.href);
  });

  setInterval(() => {
    tick();
    if (open && live() && Date.now() - heard > QUIET) { heard = Date.now(); ask(); } // a dead socket looks like a quiet one
  }, 1000);
  refresh();
})();
