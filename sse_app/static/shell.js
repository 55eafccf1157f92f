// What both pages have around their content: the login, which a page load survives, and the way out.

import { find, setText } from "./dom.js";
import { ApiError, Session } from "./session.js";

const LOGGED_OUT = "You are logged out.";
const EXPIRED = "Your login has expired. Please log in again.";
const RETRY = 3000; // ms after which a page that was loaded while the server was away looks for its session again

/** Shows the login form or the page, and tells the page when to begin and to end. */
export class Shell {
  #page;
  #login = find("#login");
  #form = find("#login-form");
  #problem = find("#login-problem");
  #views = ["login", "live", "refused"].map((id) => document.getElementById(id)).filter(Boolean);

  #leaving = false;

  session = new Session(({ reason, username, successor }) => {
    if (reason === "logout") this.end(LOGGED_OUT, this.#leaving);
    else if (reason === "expired") this.end(EXPIRED);
    else this.end(`This browser is now logged in as ${successor}, no longer as ${username}. Please log in again.`);
  });

  /**
   * @param {object} page
   * @param {(session: Session) => string} page.begin starts the page, and returns the id of the view to show
   * @param {() => void} page.end stops it
   */
  constructor(page) {
    this.#page = page;
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#logIn();
    });
    find("#logout").addEventListener("click", () => this.#logOut());
  }

  /** Continues the session of an earlier page load, or asks for a name and a password. */
  async start() {
    try {
      if (await this.session.resume()) this.#begin();
      else this.#show("login");
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.end(`That did not work: ${error.message}.`);
      setTimeout(() => this.session.username || this.start(), RETRY);
    }
  }

  /** Goes back to the login form, because the server takes the login no more. */
  async expire() {
    if (!this.session.username) return; // the session has said so
    const left = this.#leave();
    this.end(EXPIRED);
    await left;
  }

  /** Goes back to the login form, and says why. */
  end(sentence, calm = false) {
    this.#page.end();
    setText(this.#problem, sentence);
    this.#problem.classList.toggle("calm", calm);
    this.#show("login");
    this.#form[this.#form.username.value ? "password" : "username"].focus();
  }

  async #logIn() {
    const button = find("button", this.#form);
    button.disabled = true;
    setText(this.#problem, "");
    this.#problem.classList.remove("calm");
    try {
      await this.session.login(this.#form.username.value.trim(), this.#form.password.value);
      this.#form.password.value = "";
      this.#begin();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      const wrong = "This name and password do not fit.";
      setText(this.#problem, error.status === 401 ? wrong : `That did not work: ${error.message}.`);
      this.#form.password.focus();
    } finally {
      button.disabled = false;
    }
  }

  async #logOut() {
    this.#leaving = true;
    const left = this.#leave();
    this.#leaving = false;
    await left;
  }

  async #leave() {
    // The tokens are forgotten here; where the server could not be told, they run out by themselves.
    await this.session.logout().catch((error) => {
      if (!(error instanceof ApiError)) throw error;
    });
  }

  #begin() {
    setText(find("#who"), this.session.username);
    this.#show(this.#page.begin(this.session));
  }

  #show(id) {
    for (const view of this.#views) view.hidden = view.id !== id;
    find("#account").hidden = id === "login";
    document.body.dataset.view = id;
    document.getElementById(id).querySelector("[tabindex='-1']")?.focus();
    if (id === "login" && !this.#form.contains(document.activeElement)) this.#form.username.focus();
  }
}
