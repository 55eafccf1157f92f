// Small ways to find and fill elements. Data goes in as text only.

/**
 * Finds the one element that must be there.
 * @param {string} selector
 * @param {ParentNode} [within]
 * @returns {any}
 */
export function find(selector, within = document) {
  const element = within.querySelector(selector);
  if (element === null) throw new Error(`there is no ${selector} in the page`);
  return element;
}

/**
 * Makes an element with a class and text.
 * @param {string} tag
 * @param {string} [className]
 * @param {string} [text]
 * @returns {HTMLElement}
 */
export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

/**
 * Sets an element's text where it differs, so that nothing is announced or laid out for no reason.
 * @param {Element} element
 * @param {string} text
 */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Writes values into the elements that are named for them: `<… data-figure="name">`.
 * @param {ParentNode} within
 * @param {Record<string, string>} values
 */
export function setFigures(within, values) {
  for (const [name, text] of Object.entries(values)) setText(find(`[data-figure="${name}"]`, within), text);
}

/**
 * Returns a function that asks for `work` to be done before the next frame, once, however often it is called.
 * @param {() => void} work
 * @returns {() => void}
 */
export function oncePerFrame(work) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      work();
    });
  };
}
