// One stream for all tabs of a browser. The tab that holds a lock leads: it has the connection, on the channels that
// any tab wants, and passes each event on. When that tab ends in any way, the browser gives the lock to the next one,
// which asks the others for their positions and resumes from the smallest; each tab drops what it has seen.

const ROLL_CALL = 250; // ms that a new leader waits for tabs that do not answer; they are heard when they do
const ANSWER = 2000; // ms that a silent leader has to answer before the lead is taken from it
const SHORT = 1000; // ms; no token is fetched more often
const LONGEST_WAIT = 3_600_000; // ms; a server that asks for more is asked again after this
const LONGEST = 2 ** 31 - 1; // ms; a longer timer would fire at once
const PATIENCE = 1.1; // ping intervals of silence after which a leader is asked whether it lives

const epochOf = (id) => id.slice(0, id.lastIndexOf("-"));
const KICKED = "kicked";

const isFinal = (error) => [401, 403].includes(error?.status);
const refusal = (error) => ({ reason: error?.code === KICKED ? KICKED : "token", status: error?.status ?? 0 });
const ended = (signal) => new Promise((resolve) => signal.addEventListener("abort", resolve));

/** The place of one tab among those that share a stream. It is started and stopped as a connection is. */
export class Tab {
  #parts;
  #options;
  #tell;
  #id = Math.random().toString(36).slice(2);
  #generation = new AbortController(); // aborted by `stop`
  #line = new AbortController(); // aborted to leave the line for the lead
  #air = null; // the BroadcastChannel
  #leader = ""; // the id of the tab that leads; what another one says is void
  #welcome = false; // what the leader passes on follows what this tab has seen
  #lead = null; // while this tab leads
  #alone = null; // the connection of a tab that went its own way
  #token; // fetched to learn whose tab this is, and used if it connects at once
  #silence = 0;
  #proof = 0; // the timer of the next token
  #limit = 0; // the timer of a token that is waited for

  /**
   * @param {object} parts
   * @param {object} parts.options those of the client, complete
   * @param {(kind: string, detail: object) => void} parts.tell
   * @param {() => string | undefined} parts.where the last event that this tab has seen
   * @param {typeof import("./sse-connection.js").Connection} parts.Connection
   * @param {(id: string, last: string) => boolean} parts.isSeen
   */
  constructor(parts) {
    const { options, tell } = parts;
    const token = typeof options.token === "function" ? (channels) => this.#ownToken(channels) : options.token;
    this.#parts = { ...parts, options: { ...options, token } };
    this.#options = options;
    this.#tell = tell;
  }

  /** @param {string} [token] a fresh one, where there is one already */
  async start(token) {
    const { signal } = this.#generation;
    this.#token = token ?? (await this.#fetchToken(signal));
    if (signal.aborted) return;
    const name = this.#nameOf(this.#token);
    if (!name) return this.#goAlone();
    this.#planProof(this.#token);
    this.#leader = "";
    this.#air = new BroadcastChannel(name);
    this.#air.onmessage = ({ data }) => signal.aborted || this.#hear(data);
    // A lock of its own says that this tab lives; the browser takes it back however the tab ends.
    const present = navigator.locks.request(`${name} ${this.#id}`, { signal }, () => {
      this.#join();
      this.#queue();
      return ended(signal);
    });
    present.catch(() => signal.aborted || this.#goAlone()); // locks are refused where storage is
  }

  stop() {
    this.#generation.abort();
    this.#generation = new AbortController();
    this.#line.abort();
    this.#air?.close();
    this.#lead?.stop();
    this.#alone?.stop();
    this.#air = this.#lead = this.#alone = null;
    clearTimeout(this.#silence);
    clearTimeout(this.#proof);
    clearTimeout(this.#limit);
  }

  /** This tab was woken, but a tab that leads and that the user does not see is told nothing of that by its browser. */
  wake() {
    this.#say("wake");
  }

  /** Returns what tabs of one URL and one user share; undefined where the token does not say who that is. */
  #nameOf(token) {
    const { share, url, search } = this.#options;
    const user = readClaims(token).sub;
    if (user || typeof share === "string") return `sse-client ${JSON.stringify([url, search, share, user ?? ""])}`;
  }

  /** Fetches a token for the stream that is shared. Where it is another user's by now, this tab leaves the group. */
  async #ownToken(channels) {
    const token = await this.#options.token(channels);
    if (this.#take(token)) return token;
    return new Promise(() => {}); // the connection that it was for has been stopped
  }

  /** Looks whose a fresh token is; that of another user begins anew among the tabs of that one. */
  #take(token) {
    if (!this.#air || this.#nameOf(token) === this.#air.name) return true;
    this.stop();
    this.#tell("reconnect", { delay: 0, reason: "user", attempt: 1 });
    this.start(token);
    return false;
  }

  /**
   * Plans the next look at whose tab this is, at the pace at which a stream of its own would renew its token: what the
   * leader has is no proof of that. A leader proves it by the tokens of its connection.
   */
  #planProof(token) {
    const { signal } = this.#generation;
    const { iat, exp } = readClaims(token);
    if (typeof this.#options.token !== "function" || !(exp > iat)) return;
    const prove = async () => {
      let fresh = token;
      try {
        if (!this.#lead) fresh = await this.#ask();
      } catch (error) {
        if (!signal.aborted && isFinal(error)) this.#tell("stop", refusal(error));
      }
      if (!signal.aborted && this.#take(fresh)) this.#planProof(fresh);
    };
    const pace = (exp - iat) * 1000 * (0.5 + 0.25 * Math.random());
    this.#proof = setTimeout(prove, Math.min(Math.max(SHORT, pace), LONGEST));
  }

  /** Asks for a token, which may take as long as with a connection. One that comes later is not used. */
  async #ask() {
    const { token, channels, connectTimeout } = this.#options;
    if (typeof token !== "function") return token;
    const expiry = new Promise((_, fail) => {
      this.#limit = setTimeout(fail, Math.min(connectTimeout, LONGEST), new Error("no token came in time"));
    });
    const timer = this.#limit;
    try {
      return await Promise.race([token([...channels]), expiry]);
    } finally {
      clearTimeout(timer);
    }
  }

  async #fetchToken(signal) {
    const { reconnectDelay, maxReconnectDelay, maxRetries } = this.#options;
    for (let attempt = 0; ; attempt++) {
      try {
        return await this.#ask();
      } catch (error) {
        if (signal.aborted) return;
        if (isFinal(error) || attempt >= maxRetries) this.#tell("stop", refusal(error));
        if (signal.aborted) return;
        const asked = Math.min(error?.retryAfter * 1000 || 0, LONGEST_WAIT) * (1 + Math.random() / 4);
        const delay = Math.max(asked, Math.random() * Math.min(maxReconnectDelay, reconnectDelay * 2 ** attempt));
        this.#tell("reconnect", { delay, reason: "token", attempt: attempt + 1 });
        await new Promise((go) => {
          this.#silence = setTimeout(go, delay);
          signal.addEventListener("abort", go);
          if (!asked) addEventListener("online", go, { once: true, signal });
        });
        if (signal.aborted) return;
      }
    }
  }

  #goAlone() {
    this.stop();
    this.#alone = new this.#parts.Connection(this.#options, this.#tell);
    this.#alone.position = this.#parts.where();
    this.#alone.start(this.#token);
    this.#token = undefined;
  }

  #say(kind, detail, to) {
    this.#air?.postMessage({ kind, detail, to, from: this.#id });
  }

  #join() {
    this.#welcome = false;
    this.#say("join", { channels: [...this.#options.channels], position: this.#parts.where() });
    this.#expectLeader(0);
  }

  /** Stands in line for the lead, or takes it from a leader that does not answer. */
  #queue(steal = false) {
    const { signal } = this.#generation;
    this.#line.abort();
    const line = (this.#line = new AbortController());
    const options = steal ? { steal } : { signal: line.signal };
    const turn = navigator.locks.request(this.#air.name, options, () => {
      clearTimeout(this.#silence);
      this.#leader = this.#id;
      this.#lead?.stop();
      this.#lead = new Leader(this.#parts, this.#air.name, (...words) => this.#say(...words));
      this.#lead.start(this.#token);
      this.#token = undefined;
      return ended(signal);
    });
    turn.catch(() => {
      if (signal.aborted || line.signal.aborted) return;
      this.#follow(this.#leader === this.#id ? "" : this.#leader); // the lead was taken from this tab
      this.#queue();
    });
  }

  #follow(leader) {
    this.#leader = leader;
    this.#lead?.stop();
    this.#lead = null;
    this.#join();
  }

  #hear({ kind, detail, to, from }) {
    if (to && !to.includes(this.#id)) return;
    if (kind === "stop") return this.#tell(kind, detail); // also where this tab leads by now
    if (this.#lead) this.#lead.hear(kind, detail, from); // the lock alone says that another tab leads now
    else if (kind === "lead") this.#follow(from);
    else if (kind === "welcome") {
      this.#leader = from;
      this.#welcome = true;
      this.#token = undefined; // by the time that this tab leads it will be old
      if (detail.info) this.#enter(detail);
    } else if (kind === "alive") this.#leader ||= from;
    else if (from === this.#leader) {
      if (kind === "apart") return this.#goAlone();
      if (this.#welcome && kind === "open") this.#enter(detail);
      else if (this.#welcome) this.#tell(kind, detail);
    }
    if (from === this.#leader) this.#expectLeader(PATIENCE * this.#options.pingInterval);
  }

  /** Comes to a stream that is open; where this tab knows another log than the leader, it is told of the gap. */
  #enter({ id, info }) {
    const mine = this.#parts.where();
    const replaced = mine && epochOf(mine) !== epochOf(id);
    for (const channel of replaced ? this.#options.channels : []) {
      this.#tell("reset", { channel, reason: "log_replaced", all: true });
    }
    this.#tell("open", { id, info, replaced });
  }

  /** Looks after a leader that says nothing, not even of the pings that it hears: a dialog can stop its page. */
  #expectLeader(ms) {
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => {
      this.#say("alive?");
      this.#silence = setTimeout(() => this.#queue(true), ANSWER);
    }, ms);
  }
}

/** What the leading tab does for all. */
class Leader {
  #parts;
  #name;
  #say;
  #options;
  #connection;
  #members = new Map(); // the channels of the other tabs, by their ids
  #open = false; // the roll is called: the connection may be opened
  #stopped = false;
  #joined = () => {};

  constructor(parts, name, say) {
    const { options, where, Connection } = parts;
    this.#parts = parts;
    this.#name = name;
    this.#say = say;
    this.#options = { ...options, channels: new Set(options.channels) };
    this.#connection = new Connection(this.#options, (kind, detail) => this.#relay(kind, detail));
    this.#connection.position = where();
  }

  async start(token) {
    this.#say("lead");
    const others = (await this.#living()).length - 1;
    await new Promise((resolve) => {
      setTimeout(resolve, ROLL_CALL);
      this.#joined = () => this.#members.size >= others && resolve();
      this.#joined();
    });
    if (this.#stopped) return;
    this.#open = true;
    this.#say("welcome", {}, [...this.#members.keys()]);
    this.#connection.start(this.#wider.length ? undefined : token);
  }

  stop() {
    this.#stopped = true;
    this.#connection.stop();
  }

  hear(kind, detail, from) {
    if (kind === "alive?") this.#say("alive", null, [from]);
    else if (kind === "join") this.#welcome(from, detail);
    else if (kind === "wake") this.#connection.heed(kind);
  }

  /** Takes a tab in: the stream goes back to where the tab stands, and has the channels that it wants. */
  #welcome(from, { channels, position }) {
    const { isSeen } = this.#parts;
    const connection = this.#connection;
    const at = connection.position;
    const known = channels.every((channel) => this.#options.channels.has(channel));
    const behind = position && position !== at && (!at || isSeen(position, at));
    this.#members.set(from, channels);
    for (const channel of channels) this.#options.channels.add(channel);
    if (behind) connection.position = position;
    this.#joined();
    if (!this.#open) return;
    if ((behind || !known) && !connection.waiting) connection.restart();
    this.#say("welcome", { id: connection.position, info: connection.info }, [from]);
  }

  #relay(kind, detail) {
    if (kind === "event" && !detail.channel && this.#scatter()) return;
    const refused = kind === "stop" && [400, 403, 404].includes(detail.status) && detail.reason !== KICKED;
    if (refused && this.#part()) return;
    // After another end the others try by themselves, with tokens of their own; a kick is meant for all who share.
    if (kind !== "stop" || detail.reason === KICKED) this.#say(kind, detail);
    this.#parts.tell(kind, detail);
    if (kind === "reconnect") this.#living();
  }

  /** The ids of the tabs that want channels which this one does not. */
  get #wider() {
    const { channels } = this.#parts.options;
    return [...this.#members.keys()].filter((id) => this.#members.get(id).some((channel) => !channels.has(channel)));
  }

  /** What was refused may be what other tabs want: those go their own way, with tokens of their own. */
  #part() {
    const wider = this.#wider;
    if (!wider.length) return false;
    this.#say("apart", null, wider);
    for (const id of wider) this.#members.delete(id);
    this.#options.channels = new Set(this.#parts.options.channels);
    this.#connection.start();
    return true;
  }

  /**
   * An event that does not say of which channel it is belongs to all tabs where they want the same. Else each gets a
   * stream of its own, from before that event.
   */
  #scatter() {
    const { channels } = this.#parts.options;
    const wanted = [[...channels], ...this.#members.values()];
    if (wanted.every((names) => new Set(names).size === this.#options.channels.size)) return false;
    this.#say("apart", null, [...this.#members.keys()]);
    this.#members.clear();
    this.#options.channels = new Set(channels);
    this.#connection.position = this.#parts.where();
    this.#connection.start();
    return true;
  }

  /** Returns the locks of the tabs that live, and forgets the others and what only they wanted. */
  async #living() {
    const before = [...this.#members.keys()]; // who joins meanwhile may not be in the answer yet
    const { held } = await navigator.locks.query();
    const living = held.filter(({ name }) => name.startsWith(`${this.#name} `));
    for (const id of before) {
      if (!living.some(({ name }) => name.endsWith(` ${id}`))) this.#members.delete(id);
    }
    this.#options.channels = new Set([...this.#parts.options.channels, ...[...this.#members.values()].flat()]);
    return living;
  }
}

/** Reads what a token says, without verifying it: that is for the server to do. */
function readClaims(token) {
  try {
    const claims = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    return JSON.parse(atob(claims));
  } catch {
    return {};
  }
}
