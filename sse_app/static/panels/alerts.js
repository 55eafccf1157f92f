// The alerts panel: the last alerts, newest first, with their severity.

import { find, make, oncePerFrame, setText } from "../dom.js";
import { clock, words } from "../format.js";

const MOST = 200;
const TITLE = document.title;
const SEVERITIES = ["critical", "high", "medium", "low"];

/** @implements {import("../feed.js").Panel} */
export class AlertsPanel {
  #list;
  #empty;
  #counts;
  #announcer;
  #alerts = []; // the severities of what is in the list, newest first
  #fresh = []; // not yet in the list, oldest first
  #unread = 0;
  #badge;
  #read;
  #redraw = oncePerFrame(() => this.#draw());

  /** @param {HTMLElement} element */
  constructor(element) {
    this.#list = find("[data-list]", element);
    this.#empty = find("[data-empty]", element);
    this.#counts = find("[data-counts]", element);
    this.#announcer = find("[data-announcer]", element);
    this.#badge = find("[data-unread]", element);
    this.#read = find("[data-read]", element);
    this.#read.addEventListener("click", () => this.#markAsRead());
    this.clear();
  }

  /** Forgets everything. */
  clear() {
    this.#alerts = [];
    this.#fresh = [];
    this.#unread = 0;
    this.#list.replaceChildren();
    setText(this.#announcer, "");
    this.#redraw();
  }

  /**
   * @param {import("../feed.js").Received} event
   * @param {boolean} live
   */
  apply({ event, data }, live) {
    if (event !== "risk_alert") return;
    this.#fresh.push({ data, live });
    if (this.#fresh.length > MOST) this.#fresh.shift();
    this.#redraw();
  }

  #draw() {
    for (const { data, live } of this.#fresh) this.#add(data, live);
    this.#fresh = [];
    this.#empty.hidden = this.#alerts.length > 0;
    this.#counts.replaceChildren(...SEVERITIES.flatMap((severity) => this.#chip(severity)));
    this.#badge.hidden = this.#read.hidden = this.#unread === 0;
    setText(this.#badge, `${this.#unread} unread`);
    document.title = this.#unread ? `(${this.#unread}) ${TITLE}` : TITLE;
  }

  #markAsRead() {
    this.#unread = 0;
    for (const row of this.#list.querySelectorAll(".alert-unread")) row.classList.remove("alert-unread");
    this.#list.focus(); // the button goes, and the focus with it
    this.#redraw();
  }

  #add(data, live) {
    const severity = SEVERITIES.includes(data.severity) ? data.severity : "low";
    this.#alerts.unshift(severity);
    if (live) this.#unread += 1;
    this.#list.prepend(item(data, severity, live));
    while (this.#alerts.length > MOST) {
      this.#alerts.pop();
      this.#list.lastElementChild.remove();
    }
    if (live && (severity === "critical" || severity === "high")) {
      setText(this.#announcer, `${severity} alert: ${data.message ?? ""}`);
    }
  }

  #chip(severity) {
    const count = this.#alerts.filter((each) => each === severity).length;
    if (!count) return [];
    const chip = make("li", "chip", `${count} ${severity}`);
    chip.dataset.severity = severity;
    return [chip];
  }
}

function item(data, severity, live) {
  const row = make("li", live ? "alert alert-live alert-unread" : "alert");
  row.dataset.severity = severity;
  const moment = new Date(data.timestamp);
  const time = make("time", "alert-time", clock(moment));
  if (!Number.isNaN(moment.getTime())) time.dateTime = moment.toISOString();
  const text = make("p", "alert-text", String(data.message ?? words(data.alert_type)));
  const about = `${words(data.alert_type)} · ${words(data.entity_type)} ${data.entity_id ?? ""}`;
  row.append(make("span", "alert-severity", severity), time, text, make("p", "alert-about", about));
  return row;
}
