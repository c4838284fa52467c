// The frame around the pages: which one is open, what went wrong, whether the studio can be reached.

import { ask, h } from "./dom.js";
import * as compare from "./compare.js";
import * as data from "./data.js";
import * as record from "./record.js";
import * as watch from "./watch.js";

const PAGES = {
  watch: { title: "Watch", open: watch.open },
  record: { title: "Record", open: record.open },
  data: { title: "Data", open: data.open },
  compare: { title: "Compare", open: compare.open },
};

const main = document.querySelector("main");
const notice = document.querySelector("#notice");
const connection = document.querySelector("#connection");
let close = () => {};
let opening = 0;

/** Shows one line of trouble, or takes it away. */
export function tell(text, kind = "bad") {
  notice.textContent = text ?? "";
  notice.hidden = !text;
  notice.className = kind;
}

/** Says beside the navigation how the connection stands: "", "open", "connecting" or "lost". */
function connected(state) {
  document.body.dataset.connection = state;
  const words = { open: "connected", connecting: "connecting", lost: "connection lost, trying again" };
  connection.textContent = words[state] ?? "";
}

async function show() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  const page = PAGES[name] ?? PAGES.watch;
  const mine = ++opening;
  close();
  close = () => {};
  tell();
  connected("");
  for (const link of document.querySelectorAll("nav a")) {
    if (link.textContent === page.title) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${page.title} · Visuomotor Studio`;
  const root = h("div", { class: "page" });
  main.replaceChildren(root);
  try {
    const about = await ask("/api/about");
    if (mine !== opening) return;
    close = page.open(root, { about, tell, connected, path: rest }) ?? close;
  } catch (error) {
    tell(`The studio does not answer: ${error.message}`);
    connected("lost");
    setTimeout(() => mine === opening && show(), 2000);
  }
}

document.querySelector("nav").append(
  ...Object.entries(PAGES).map(([name, page]) => h("a", { href: `#/${name}` }, page.title)),
);
addEventListener("hashchange", show);
show();
