// Elements, controls and requests in few words.

/** An element with properties, listeners (`onclick`) and children; text is never read as HTML. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
}

/** The same for SVG, with attributes only. */
export function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.flat().filter((child) => child != null));
  return element;
}

/** A control with its name above. */
export function field(name, control) {
  control.setAttribute("aria-label", name); // alone: a browser would read a choice's options out as well
  return h("label", { class: "field" }, h("span", {}, name), control);
}

/** A choice; `options` are [value, text] pairs. */
export function choice(options, value, changed) {
  const items = options.map(([key, text]) => h("option", { value: key }, text));
  const control = h("select", { onchange: () => changed(control.value) }, items);
  control.value = value;
  return control;
}

/** A whole number from `least` to `most`; `changed` hears of another one. Emptied, it is again what it was. */
export function number(value, least, most, changed) {
  const take = () => {
    const before = control.defaultValue;
    const wanted = Math.round(Number(control.value || before));
    control.value = Math.min(most, Math.max(least, wanted));
    if (control.value === before) return;
    control.defaultValue = control.value;
    changed(Number(control.value));
  };
  const control = h("input", { type: "number", min: least, max: most, step: 1, value, onchange: take });
  return control;
}

/** What the studio answers to GET; its own words where it refuses. An AbortSignal may give it up. */
export async function ask(address, signal) {
  const answer = await fetch(address, { signal });
  const isJson = answer.headers.get("content-type")?.startsWith("application/json");
  const content = isJson ? await answer.json() : await answer.text();
  if (!answer.ok) throw new Error(content.error ?? String(content).trim());
  return content;
}

/** A panel with a title; what stands right of it may change. */
export function panel(title, aside, ...children) {
  const head = h("h2", {}, title, h("span", { class: "aside" }, aside));
  return h("section", { class: "card", "aria-label": title }, head, children);
}
