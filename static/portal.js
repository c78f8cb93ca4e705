/* Deploy Portal: what the pages do in addition to htmx. The pages also work without this script. */
(() => {
  "use strict";
  const $ = (selector, from = document) => from.querySelector(selector);
  const $$ = (selector, from = document) => from.querySelectorAll(selector);
  const setText = (element, text) => {
    if (element.textContent !== text) element.textContent = text;
  };

  // --- Time: measured with the server's clock, because the browser's clock may be wrong ---
  const navigation = performance.getEntriesByType("navigation")[0];
  const renderedAt = Number(document.body.dataset.now) * 1000;
  const receivedAt = performance.timeOrigin + (navigation ? navigation.responseStart : 0);
  const clockOffset = renderedAt && Number.isFinite(receivedAt) ? receivedAt - renderedAt : 0;

  function formatDuration(seconds) {
    if (!Number.isFinite(seconds)) return "";
    const s = Math.max(0, Math.floor(seconds)), m = Math.floor(s / 60), h = Math.floor(m / 60);
    if (s < 60) return `${s} s`;
    if (m < 60) return `${m} m ${s % 60} s`;
    return h < 24 ? `${h} h ${m % 60} m` : `${Math.floor(h / 24)} d ${h % 24} h`;
  }

  function updateElapsedTimes() {
    for (const element of $$("time[data-since]")) {
      const text = formatDuration((Date.now() - clockOffset - Date.parse(element.dataset.since)) / 1000);
      if (text) setText(element, text + (element.dataset.after || ""));
    }
  }

  function localizeTimes() {
    const day = { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
    for (const element of $$("time[datetime]:not([title])")) {
      const time = new Date(element.dateTime);
      if (Number.isNaN(time.getTime())) continue;
      element.title = time.toLocaleString([], { dateStyle: "full", timeStyle: "long" });
      if (element.dataset.local === "clock") setText(element, time.toLocaleTimeString([], { hourCycle: "h23" }));
      if (element.dataset.local === "day") setText(element, time.toLocaleString([], day));
    }
    for (const element of $$("[data-seconds]")) {
      if (element.dataset.seconds >= 60) setText(element, formatDuration(Number(element.dataset.seconds)));
    }
  }

  // --- After each update: tab title, announcement, failure card, log ---
  const deployment = () => $("#deployment");
  const isDone = () => !!deployment() && deployment().hasAttribute("data-done");
  const scrolledUp = new WeakSet();
  let announced = deployment() ? deployment().dataset.announcement : "";
  let hasFailed = !!$("#failure");

  function scrollLogsToEnd(from = document) {
    for (const log of $$("details[open] [data-follow]", from)) {
      if (!scrolledUp.has(log)) log.scrollTop = log.scrollHeight;
    }
  }

  function afterUpdate() {
    localizeTimes();
    updateElapsedTimes();
    scrollLogsToEnd();
    const page = deployment(), icon = $("#favicon");
    if (!page) return;
    if (page.dataset.title) document.title = page.dataset.title;
    const href = icon.dataset[page.dataset.favicon];
    if (href && icon.getAttribute("href") !== href) icon.setAttribute("href", href);
    if (page.dataset.announcement !== announced) {
      announced = page.dataset.announcement || "";
      setText($("#announcement"), announced);
    }
    if ($("#failure") && !hasFailed) $("#failure").focus();
    hasFailed = !!$("#failure");
    for (const element of $$("#chip, [data-while-running]")) element.hidden = isDone();
  }

  document.addEventListener("scroll", ({ target }) => {
    if (!target.matches || !target.matches("[data-follow]")) return;
    const atEnd = target.scrollHeight - target.scrollTop - target.clientHeight < 24;
    if (atEnd) scrolledUp.delete(target); else scrolledUp.add(target);
  }, true);
  document.addEventListener("toggle", ({ target }) => scrollLogsToEnd(target.parentElement || document), true);

  // --- An update keeps what the browser has changed: opened details, local times, a button that says "Copied" ---
  const toggled = new Set(), copying = new WeakSet();
  Object.assign(Idiomorph.defaults.callbacks, {
    beforeAttributeUpdated: (name, element) => !(name === "open" && toggled.has(element.id)),
    beforeNodeMorphed(old, fresh) {
      if (old.nodeType !== Node.ELEMENT_NODE || !fresh.getAttribute) return true;
      if (copying.has(old)) return false;
      if (old.id === "deployment" && Number(fresh.dataset.version) < Number(old.dataset.version)) return false;
      const same = (name) => old.getAttribute(name) === fresh.getAttribute(name);
      if (old.localName === "time" && old.title) {
        if (same("datetime") && same("data-since") && same("data-local")) return false;
      }
      return true;
    },
    afterNodeMorphed(node) {
      if (node.id === "deployment" || node.id === "stacks") afterUpdate();
    },
  });

  document.addEventListener("click", ({ target }) => {
    const summary = target.closest("summary");
    if (summary && summary.parentElement.id) toggled.add(summary.parentElement.id);
  });

  document.addEventListener("click", (event) => {
    const suggestion = event.target.closest("[data-fill]"), input = $("#id_name");
    if (!suggestion || !input) return;
    event.preventDefault();
    input.value = suggestion.dataset.fill;
    input.dispatchEvent(new Event("input", { bubbles: true }));
    input.focus();
  });

  document.addEventListener("click", async ({ target }) => {
    const button = target.closest("[data-copy]");
    if (!button || copying.has(button)) return;
    const label = $("[data-copy-label]", button) || button, before = label.textContent;
    copying.add(button);
    setText(label, await copyText(button.dataset.copy) ? "Copied" : "Could not copy");
    setTimeout(() => {
      setText(label, before);
      copying.delete(button);
    }, 2000);
  });

  async function copyText(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch { /* the clipboard API needs TLS; fall back to execCommand */ }
    const area = Object.assign(document.createElement("textarea"), { value: text, className: "visually-hidden" });
    const focused = document.activeElement;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    if (focused) focused.focus({ preventScroll: true });
    return copied;
  }

  // --- Connection: a WebSocket; after 5 s without an open one, polling ---
  htmx.config.wsReconnectDelay = (attempt) => 500 + Math.random() * Math.min(10000, 1000 * 2 ** attempt);
  const POLL_MS = 5000, SILENT_MS = 20000, RETRIED_BY_HTMX = [1006, 1011, 1012, 1013];
  const socketRoot = $("[ws-connect]"), pollElement = $("#poll"), chip = $("#chip");
  let isOpen = false, graceTimer = 0, pollTimer = 0, lastMessageAt = Date.now();

  function showState(state) {
    if (!chip) return;
    chip.dataset.state = state;
    setText(chip, chip.dataset[state]);
  }

  function poll() {
    if (pollElement && !isDone()) htmx.trigger(pollElement, "portal:poll");
  }

  function startPolling() {
    graceTimer = 0;
    pollTimer = setInterval(() => isDone() ? stopPolling() : poll(), POLL_MS);
    poll();
  }

  function stopPolling() {
    clearTimeout(graceTimer);
    clearInterval(pollTimer);
    graceTimer = pollTimer = 0;
  }

  function onConnectionLost() {
    if (isOpen) showState("lost");
    isOpen = false;
    if (!graceTimer && !pollTimer && !isDone()) graceTimer = setTimeout(startPolling, POLL_MS);
  }

  if (socketRoot) {
    graceTimer = setTimeout(startPolling, POLL_MS);
    socketRoot.addEventListener("htmx:wsOpen", () => {
      isOpen = true;
      lastMessageAt = Date.now();
      stopPolling();
      showState("connected");
    });
    socketRoot.addEventListener("htmx:wsAfterMessage", () => { lastMessageAt = Date.now(); });
    socketRoot.addEventListener("htmx:wsError", onConnectionLost);
    socketRoot.addEventListener("htmx:wsClose", ({ detail }) => {
      onConnectionLost();
      const { code } = detail.event;
      if (code < 4000 && !RETRIED_BY_HTMX.includes(code)) {
        setTimeout(() => isDone() || detail.socketWrapper.reconnect(), 2000 + Math.random() * 6000);
      }
    });
    document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
    window.addEventListener("online", poll);
  }
  if (pollElement) {
    pollElement.addEventListener("htmx:afterRequest", ({ detail }) => {
      if (!isOpen) showState(detail.successful ? "poll" : "lost");
    });
  }

  // --- A button whose request was refused (a stale page, an expired session): open the page that explains why ---
  document.addEventListener("htmx:afterRequest", ({ detail: { elt, requestConfig, xhr } }) => {
    if (requestConfig.verb === "post" && xhr.status && !xhr.getResponseHeader("HX-Redirect")) location.assign(elt.href);
  });

  setInterval(() => {
    updateElapsedTimes();
    // A connection that was lost without a close event looks like a silent one: poll in both cases.
    if (isOpen && deployment() && Date.now() - lastMessageAt > SILENT_MS) {
      lastMessageAt = Date.now();
      poll();
    }
  }, 1000);
  afterUpdate();
})();
