// The quotes: of each symbol the newest, on one line. The stream begins with the whole table (`last: 1` on a conflated channel).

import { find, make, setText } from "../dom.js";
import { fixed, isNumber, percent } from "../format.js";
import { SSEClient } from "../sse-client.js";

export const CHANNEL = "quotes";

/** The line, shown where the account may read the channel. */
export class Quotes {
  #element = find("#quotes");
  #list = find("[data-list]", this.#element);
  #client = null;

  /** @param {import("../session.js").Session} session */
  start(session) {
    this.stop();
    this.#element.hidden = false;
    this.#client = new SSEClient("/api/v1/sse", {
      channels: CHANNEL,
      last: 1,
      rate: 4, // a second and symbol: faster than a reader's eye can follow is of no use
      events: ["quote"],
      token: (channels) => session.streamToken(channels),
      onEvent: ({ data }) => this.#show(data),
    });
  }

  stop() {
    this.#client?.close();
    this.#client = null;
    this.#element.hidden = true;
    this.#list.replaceChildren();
  }

  #show({ symbol, price, change, date }) {
    const name = String(symbol);
    const row = [...this.#list.children].find((each) => each.dataset.symbol === name) ?? this.#add(name);
    row.title = `Close of ${date ?? ""}`;
    setText(find("[data-price]", row), fixed(price, 2));
    const element = find("[data-change]", row);
    setText(element, isNumber(change) ? percent(change, 2, true) : "");
    element.dataset.direction = change > 0 ? "up" : change < 0 ? "down" : "flat";
  }

  #add(name) {
    const row = make("div");
    row.dataset.symbol = name;
    const value = make("dd");
    const [price, change] = [make("span"), make("span", "change")];
    price.dataset.price = change.dataset.change = "";
    value.append(price, " ", change);
    row.append(make("dt", "", name), value);
    this.#list.append(row);
    return row;
  }
}
