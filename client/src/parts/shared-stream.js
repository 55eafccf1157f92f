// One stream for many views, which come and go: it carries the channels that any of them wants, and loses nothing where
// these change.

import { SSEClient } from "@sse-app/client";
import { isCovered } from "../../../sse_app/static/sse-connection.js";

const CLOSED = 2; // as EventSource.CLOSED, which is not everywhere
const REFUSALS = [204, 400, 403, 404]; // for what was asked for, so with other channels it may be another answer

const isRefusal = ({ status, reason }) => REFUSALS.includes(status) && reason !== "kicked";
const isWaiting = (token) => Boolean(token?.streamToken) && token.username === ""; // a session without a user
const isLate = (channel, { fresh, kept }) => isCovered(channel, fresh) && !isCovered(channel, kept);
const areSame = (some, others) => some.size === others.size && [...some].every((one) => others.has(one));

/** Tells whether an event id stands at or before another one of the same log. */
function isUpTo(id, last) {
  const [epoch, lastEpoch] = [id, last].map((one) => one.slice(0, one.lastIndexOf("-")));
  return epoch === lastEpoch && Number(id.slice(epoch.length + 1)) <= Number(last.slice(epoch.length + 1));
}

/**
 * A stream for views. A view has `channels`, a set, and takes `onOpen`, `onEvent`, `onReset`, `onReconnect` and
 * `onClose` as an `SSEClient` calls them, about what it wants alone. After `onClose` it is no longer one of the views; where
 * the token is a session, the next login brings it back, which `onReturn` tells it. Without a login the stream waits for one.
 */
export class Stream extends EventTarget {
  #settings; // returns the options of the client, with the `url` before the channels
  #resumes; // without views it keeps its position
  #views = new Set();
  #opened = new Set(); // the views that were told that it is open
  #ended = new Set(); // the views that the server has ended
  #session; // whose logins are heard of
  #types = new Set(); // of events with listeners
  #client = null;
  #url = "";
  #carried = new Set();
  #info = null; // what the server said, while it is open
  #events; // the types that views hear, where these are not all
  #sifts = false; // the server refused something of what it carries
  #later = []; // channels that came later, beside those that were kept, and the id up to which they were not wanted
  #early = false; // the event that is being told came before it was wanted
  #turn = new AbortController(); // aborted when a change is overtaken by the next
  #planned = false;

  constructor(settings, resumes = false) {
    super();
    this.#settings = settings;
    this.#resumes = resumes;
  }

  get lastEventId() {
    return this.#client?.lastEventId ?? "";
  }

  /** Takes a view in, or takes note that its channels have changed. */
  join(view) {
    this.#ended.delete(view);
    this.#views.add(view);
    if (![...view.channels].every((channel) => isCovered(channel, this.#carried))) this.#opened.delete(view);
    this.#plan();
  }

  leave(view) {
    this.#ended.delete(view);
    this.#views.delete(view);
    this.#opened.delete(view);
    this.#plan();
  }

  /** Where it waits to reconnect, does so now. */
  connect() {
    this.#client?.connect();
  }

  /** Begins anew with what is new, with the settings as they are now, also for views that had ended. */
  restart() {
    this.#turn.abort();
    this.#drop();
    this.#bringBack();
  }

  #bringBack() {
    for (const view of [...this.#ended]) {
      this.join(view);
      call(view.onReturn);
    }
    this.#plan();
  }

  #heed(token) {
    if (token === this.#session) return;
    this.#session?.removeEventListener?.("change", this.#onChange);
    this.#session = token;
    token?.addEventListener?.("change", this.#onChange);
  }

  #onChange = () => isWaiting(this.#session) || this.#bringBack();

  /** Listens as on an `SSEClient`. */
  addEventListener(type, ...rest) {
    super.addEventListener(type, ...rest);
    if (this.#types.has(type)) return;
    this.#types.add(type);
    if (this.#client) this.#pass(this.#client, type);
  }

  /** Views that come and go at a time, as where a page takes the place of another, are one change. */
  #plan() {
    if (this.#planned) return;
    this.#planned = true;
    queueMicrotask(() => {
      this.#planned = false;
      this.#settle();
    });
  }

  async #settle() {
    this.#turn.abort();
    const { signal } = (this.#turn = new AbortController());
    const { url, ...settings } = this.#settings();
    const covered = (channels) => [...channels].filter((channel) => isCovered(channel, this.#carried));
    this.#heed(this.#views.size || this.#ended.size ? settings.token : null);
    if (!this.#views.size) return this.#resumes ? this.#close() : this.#drop();
    if (isWaiting(settings.token)) return; // an open stream is ended by its client
    const wanted = new Set([...this.#views].flatMap((view) => [...view.channels]));
    const kept = covered(wanted);
    if (url !== this.#url || !kept.length) this.#drop(); // nothing is left of what it was
    let late;
    const fresh = [...wanted].filter((channel) => this.#sifts || !isCovered(channel, this.#carried));
    if (fresh.length && (this.lastEventId || this.#sifts)) {
      const id = await this.#ask(fresh, { url, ...settings }, signal);
      if (signal.aborted || !id) return; // what was refused has ended its views, which is another change
      if (!this.#sifts) this.#later.push((late = { id, fresh: new Set(fresh), kept: new Set(kept) }));
      this.#sifts = false;
    }
    if (this.#client && this.#client.readyState !== CLOSED && areSame(wanted, this.#carried)) return this.#greet();
    this.#open(url, settings, wanted, late);
  }

  /**
   * Asks for channels that come later with a short stream of their own. So it is known where they stand now, which is
   * what it returns, and what is refused of them ends the views that want it and no others.
   */
  async #ask(channels, settings, signal) {
    const { id, detail } = await ask(channels, settings, signal);
    if (signal.aborted || id) return id;
    if (channels.length > 1 && isRefusal(detail)) {
      for (const channel of channels) if (!(await this.#ask([channel], settings, signal))) return undefined;
      return this.#ask(channels, settings, signal);
    }
    this.#end([...this.#views].filter((view) => channels.some((channel) => view.channels.has(channel))), detail);
    return undefined;
  }

  /** Opens it on these channels, of which those that came late are not wanted from before. */
  #open(url, { events, ...settings }, channels, late) {
    const position = this.lastEventId;
    this.#close();
    const own = (act) => (detail) => client === this.#client && act(detail);
    const client = new SSEClient(url, {
      ...settings,
      channels: [...channels],
      autoConnect: false,
      onOpen: own((info) => {
        this.#info = info;
        this.#greet();
      }),
      onEvent: own((event) => this.#hear(event)),
      onReset: own((reset) => (late && isLate(reset.channel, late)) || this.#tell("onReset", reset)),
      onReconnect: own((detail) => {
        late = null; // by now they have been carried, and what is lost of them was wanted
        this.#info = null;
        this.#opened.clear();
        this.#tell("onReconnect", detail);
      }),
      onClose: own((detail) => this.#over(detail)),
    });
    if (position) client.lastEventId = position;
    this.#client = client;
    this.#url = url;
    this.#carried = channels;
    this.#events = events && new Set(events);
    for (const type of this.#types) this.#pass(client, type);
    client.connect();
  }

  /** Fires what a client fires, right after it has called back. */
  #pass(client, type) {
    client.addEventListener(type, (event) => {
      if (client !== this.#client || (event instanceof MessageEvent && this.#early)) return;
      const { detail } = event;
      this.dispatchEvent(Object.assign(new event.constructor(type, event), detail && { detail }));
    });
  }

  #hear(event) {
    if (event.id) this.#later = this.#later.filter(({ id }) => isUpTo(event.id, id));
    this.#early = event.id && this.#later.some((late) => isLate(event.channel, late));
    const isWanted = !this.#events || this.#events.has(event.type) || this.#types.has(event.type);
    if (isWanted && !this.#early) this.#tell("onEvent", event);
  }

  /** Tells the views what concerns them. What does not say of which channel it is concerns those that want them all. */
  #tell(callback, detail) {
    for (const view of [...this.#views]) {
      const { channel } = detail;
      const concerns = channel ? isCovered(channel, view.channels) : areSame(view.channels, this.#carried);
      if (callback === "onReconnect" || concerns) call(view[callback], detail);
    }
  }

  /** Tells the views that it is open, each once. */
  #greet() {
    for (const view of this.#info ? [...this.#views] : []) {
      if (this.#opened.has(view) || ![...view.channels].every((channel) => isCovered(channel, this.#carried))) continue;
      this.#opened.add(view);
      call(view.onOpen, this.#info);
    }
  }

  #over(detail) {
    this.#info = null;
    this.#opened.clear();
    if (!isRefusal(detail) || this.#views.size < 2 || this.#carried.size < 2) return this.#end([...this.#views], detail);
    this.#sifts = true;
    this.#plan();
  }

  #end(views, detail) {
    for (const view of views) {
      this.leave(view);
      this.#ended.add(view);
      call(view.onClose, detail);
    }
  }

  #close() {
    const client = this.#client;
    this.#client = this.#info = null;
    client?.close();
    this.#client = client; // its position is the stream's
  }

  #drop() {
    this.#close();
    this.#client = null;
    this.#carried = new Set();
    this.#opened.clear();
    this.#later = [];
    this.#sifts = false;
  }
}

/** Calls a view; an error there is reported as the page's own, and disturbs no other view. */
function call(callback, detail) {
  try {
    callback?.(detail);
  } catch (error) {
    setTimeout(() => {
      throw error;
    });
  }
}

/** Opens a stream and closes it again: returns the id of where that began, or why it ended. */
async function ask(channels, { events, persist, from, last, since, ...settings }, signal) {
  if (signal.aborted) return {};
  let client;
  const answer = await new Promise((resolve) => {
    signal.addEventListener("abort", () => resolve({}));
    client = new SSEClient(settings.url, {
      ...settings,
      channels,
      events: [],
      share: false,
      autoConnect: true,
      onOpen: () => resolve({ id: client.lastEventId }),
      onClose: (detail) => resolve({ detail }),
    });
  });
  client.close();
  return answer;
}
