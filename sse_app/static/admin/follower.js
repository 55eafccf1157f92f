// A stream of events whose types are not known beforehand: an EventSource hears none of these, so it is read by fetch.

import { parse } from "../sse-connection.js";

const PAUSE = 3000; // milliseconds before the stream is opened again
const OWN = ["connected", "ping"];

/** Follows a channel or a pattern from a position on, or from what is new, until it is stopped. */
export class Follower {
  #end = new AbortController();
  #session;
  #channel;
  #position;
  #listener;

  /**
   * @param {import("../session.js").Session} session
   * @param {string} channel or a pattern
   * @param {string} position the id after which it begins; empty: with what is new
   * @param {{onEvent: (event: object) => void, onSay: (sentence: string) => void, onEnd: (why: string) => void}} listener
   */
  constructor(session, channel, position, listener) {
    this.#session = session;
    this.#channel = channel;
    this.#position = position;
    this.#listener = listener;
    this.#run();
  }

  stop() {
    this.#end.abort();
  }

  async #run() {
    const { signal } = this.#end;
    while (!signal.aborted) {
      const end = await this.#read(signal).catch(({ status, message }) => (status >= 400 && status < 429 ? message : ""));
      if (signal.aborted) return;
      if (end) return this.#listener.onEnd(end);
      this.#listener.onSay("connecting again");
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
    }
  }

  /** Reads one connection to its end; returns why it was the last one, or nothing. */
  async #read(signal) {
    const token = await this.#session.streamToken([this.#channel]);
    const headers = { Authorization: `Bearer ${token}` };
    if (this.#position) headers["Last-Event-ID"] = this.#position;
    const answer = await fetch(`/api/v1/sse/${encodeURIComponent(this.#channel)}`, { headers, signal, cache: "no-store" });
    if (answer.status === 204) return "the channel has ended";
    if (!answer.ok) {
      if (answer.status >= 429) return "";
      return (await answer.json().catch(() => null))?.error?.message ?? `the server answered ${answer.status}`;
    }
    this.#listener.onSay("live");
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let waiting = ""; ; ) {
      const { value, done } = await reader.read();
      if (done || signal.aborted) return "";
      const blocks = (waiting + value).split("\n\n");
      waiting = blocks.pop();
      for (const block of blocks) {
        const end = this.#take(fieldsOf(block));
        if (end) return end;
      }
    }
  }

  #take({ id, event, data }) {
    if (id) this.#position = id;
    const value = data === "null" ? null : parse(data);
    if (event === "closing") return value.retry == null && value.reason === "ended" ? "the channel has ended" : "";
    if (event === "reset") this.#listener.onSay(`a gap on ${value.channel}: ${value.reason}`);
    else if (event && !OWN.includes(event)) {
      const channel = this.#channel.includes("*") ? (value?.channel ?? "") : this.#channel;
      this.#listener.onEvent({ id: id ?? "", channel, event, data: value });
    }
    return "";
  }
}

/** Reads an event as this server writes it: lines that end with LF, and a space after each colon. */
function fieldsOf(block) {
  const fields = {};
  const data = [];
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    const value = line.slice(colon + 2);
    if (line.startsWith("data:")) data.push(value);
    else fields[line.slice(0, colon)] = value;
  }
  return { ...fields, data: data.join("\n") };
}
