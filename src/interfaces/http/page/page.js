// The page: asks /v1/completions for a continuation and shows it as it comes. Text from the server is only ever set
// as textContent, and styles are set through the style object, so the page works under `default-src 'self'`.
"use strict";

const $ = (id) => document.getElementById(id);
const ALL_TOKENS = Number($("top-k").max); // the slider's right end: no top-k
const SURPRISE_STEPS = [0.5, 1, 2, 4, 7]; // bits; as the legend says
const KEY_NAME = "smallgpt-key";
const THEME_NAME = "smallgpt-theme";

let model = ""; // its name, once the server has told it
let running = null; // the AbortController of the request under way
let given = ""; // the beginning of the story that is shown
let written = ""; // and what the model wrote after it
let held = []; // tokens whose text has not come yet: the bytes of an unfinished letter
let totals = { tokens: 0, scored: 0, bits: 0 };
const pieces = new WeakMap(); // a token's span -> the tokens it shows

// A browser that blocks cookies refuses the page its storage too: nothing is remembered then.
function remember(storage, name, value) {
  try {
    window[storage].setItem(name, value);
  } catch {}
}
function recall(storage, name) {
  try {
    return window[storage].getItem(name);
  } catch {
    return null;
  }
}

// --- talking to the server

/** What went wrong, in words for the person at the page. */
class Trouble extends Error {}

async function call(path, options = {}) {
  const key = $("key").value.trim();
  remember("sessionStorage", KEY_NAME, key);
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The server does not answer. Is it still running? Start it again, then try once more.");
  }
  if (response.ok) return response;
  if (response.status === 401) {
    $("key-row").hidden = false;
    $("key").focus();
    throw new Trouble(key ? "The server does not accept this key." : "This server wants an API key.");
  }
  if (response.status === 429) {
    const seconds = Number(response.headers.get("Retry-After")) || 0;
    const when = seconds > 0 ? `in ${seconds} second${seconds === 1 ? "" : "s"}` : "in a moment";
    throw new Trouble(`The server is busy with other stories. Try again ${when}.`);
  }
  if (response.status === 404) model = ""; // another server has taken its place, perhaps with another model
  const said = (await response.json().catch(() => null))?.error?.message;
  throw new Trouble(said ?? `The server answered ${response.status}, and did not say why.`);
}

async function learnModel(signal) {
  const { data } = await (await call("v1/models", { signal })).json();
  model = data[0].id;
  $("model").textContent = model;
}

/** The data of each server-sent event, however the network cuts the bytes. */
async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    const whole = rest.split(/\r?\n\r?\n/);
    rest = whole.pop();
    for (const event of whole) {
      const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
    }
  }
}

function request(prompt) {
  const topK = Number($("top-k").value);
  return {
    model,
    prompt,
    max_tokens: Number($("max-tokens").value),
    temperature: Number($("temperature").value),
    ...(topK < ALL_TOKENS && { top_k: topK }),
    ...($("seed").value !== "" && { seed: Number($("seed").value) }),
    stream: true,
    logprobs: 5,
  };
}

/** Reads the answer to its end -> why it ended: "stop" or "length". */
async function receive(response) {
  let tokens = 0;
  let reason = "";
  let first = 0;
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return reason;
      const { error, choices } = JSON.parse(data);
      if (error) throw new Trouble(`The server broke off: ${error.message}`);
      tokens += take(choices[0]);
      first ||= performance.now();
      speed = tokens > 1 ? (tokens - 1) / (Math.max(performance.now() - first, 1) / 1000) : 0;
      showFigures();
      reason = choices[0].finish_reason ?? reason;
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Trouble) throw error;
  }
  if (reason) return reason;
  throw new Trouble(`The connection to the server broke off after ${count(tokens)}. Continue goes on from there.`);
}

// --- starting and ending

/** Writes after the prompt; `begin` is called once the server has agreed, so that a refusal leaves the text alone. */
async function write(prompt, begin) {
  if (running || !$("form").reportValidity()) return;
  running = new AbortController();
  setBusy(true);
  try {
    if (!model) await learnModel(running.signal);
    const body = JSON.stringify(request(prompt));
    const response = await call("v1/completions", { method: "POST", body, signal: running.signal });
    begin();
    const reason = await receive(response);
    $("status").textContent = `${reason === "stop" ? "The end" : "Paused"}, after ${count(totals.tokens)}.`;
  } catch (error) {
    if (error.name === "AbortError") $("status").textContent = `Stopped, after ${count(totals.tokens)}.`;
    else if (error instanceof Trouble) $("error").textContent = error.message;
    else throw error;
  } finally {
    running = null;
    setBusy(false);
  }
}

function setBusy(busy) {
  const at = document.activeElement;
  if (busy) {
    $("error").textContent = "";
    $("status").textContent = "Writing.";
    following = true;
  } else if ($("error").textContent) {
    $("status").textContent = "";
  }
  $("result").hidden = !busy && !given && !written;
  $("story").setAttribute("aria-busy", busy);
  $("write").hidden = busy;
  $("stop").hidden = !busy;
  for (const id of ["continue", "retry", "copy"]) $(id).hidden = busy;
  // A button that goes takes the keyboard's place on the page with it, unless the place is handed on.
  if (busy && ["write", "continue", "retry"].includes(at.id)) $("stop").focus({ preventScroll: true });
  if (!busy && at.id === "stop") $($("result").hidden ? "write" : "continue").focus({ preventScroll: true });
}

function startAfresh(beginning) {
  write(beginning, () => {
    hideCard();
    given = beginning;
    written = "";
    held = [];
    totals = { tokens: 0, scored: 0, bits: 0 };
    $("given").textContent = given;
    $("tokens").replaceChildren();
  });
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  startAfresh($("beginning").value);
});
$("retry").addEventListener("click", () => {
  $("beginning").value = given;
  startAfresh(given);
});
$("continue").addEventListener("click", () => write(given + written, () => (held = [])));
$("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (!running) $("form").requestSubmit();
  } else if (event.key === "Escape") {
    hideCard();
    running?.abort();
  }
});

// --- the story

const count = (tokens) => `${tokens} token${tokens === 1 ? "" : "s"}`;
const bitsOf = (tokens) => tokens.reduce((sum, { logprob }) => sum - logprob / Math.LN2, 0);

/** A token's own text. One that is no whole letter is told as its bytes, "bytes:\xf0\x9f". */
function textOf({ token }) {
  if (!/^bytes:(\\x[0-9a-f]{2})+$/.test(token)) return token;
  const bytes = token.match(/[0-9a-f]{2}(?=\\|$)/g).map((byte) => parseInt(byte, 16));
  return new TextDecoder().decode(Uint8Array.from(bytes));
}

/** Shows what a chunk brought -> how many tokens that was. */
function take({ text, logprobs }) {
  const came = (logprobs?.tokens ?? []).map((token, at) => ({
    token,
    logprob: logprobs.token_logprobs[at],
    alternatives: logprobs.top_logprobs?.[at] ?? {},
  }));
  held.push(...came);
  written += text;
  if (text) {
    const apart = held.map(textOf).join("") === text;
    for (const one of apart ? held.filter(textOf) : []) add(textOf(one), [one]);
    if (!apart) add(text, held);
    held = [];
  }
  for (const { logprob } of came) {
    totals.scored += 1;
    totals.bits -= logprob / Math.LN2;
  }
  const tokens = came.length || (text ? 1 : 0);
  totals.tokens += tokens;
  return tokens;
}

function add(text, tokens) {
  const span = document.createElement("span");
  const bits = bitsOf(tokens);
  span.textContent = text;
  span.className = "token";
  if (tokens.length) span.classList.add(`s${SURPRISE_STEPS.filter((step) => bits >= step).length}`);
  span.classList.toggle("break", /^\s*\n\s*$/.test(text));
  span.tabIndex = $("tokens").firstChild ? -1 : 0; // one stop for the Tab key; arrows move it
  pieces.set(span, tokens);
  $("tokens").append(span);
}

let frame = 0;
let speed = 0; // tokens a second
let following = true;

function showFigures() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    const parts = [count(totals.tokens)];
    if (speed) parts.push(`${speed.toFixed(speed < 10 ? 1 : 0)} tokens/s`);
    if (totals.scored) parts.push(`${(totals.bits / totals.scored).toFixed(2)} bits a token`);
    $("figures").textContent = parts.join(" · ");
    follow();
  });
}

/** Keeps the end of the story in view, unless the reader has scrolled away or is looking at a token. */
function follow() {
  const end = $("tokens").getBoundingClientRect().bottom;
  const floor = innerHeight - $("stop").parentElement.offsetHeight - 24;
  if (end <= floor) following = true;
  else if (following && !shown) scrollBy(0, end - floor + 48);
}
for (const kind of ["wheel", "touchmove"]) addEventListener(kind, () => (following = false), { passive: true });

$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(given + written);
    $("copy").textContent = "Copied";
    $("status").textContent = "Copied.";
    setTimeout(() => ($("copy").textContent = "Copy"), 2000);
  } catch { // no clipboard for pages that come from another machine without https
    getSelection().selectAllChildren($("story"));
    $("status").textContent = "The text is selected; copy it with Ctrl C.";
  }
});

// --- a token's card

let shown = null; // the span whose card is open
let leaving = 0;

const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");
function percent(logprob) {
  const p = 100 * Math.exp(logprob);
  return p < 0.05 ? "under 0.1 %" : `${p.toFixed(1)} %`;
}

function showCard(span) {
  clearTimeout(leaving);
  if (span === shown) return;
  hideCard();
  const tokens = pieces.get(span);
  if (!tokens.length) return; // the server gave no probabilities
  const bits = bitsOf(tokens);
  const logprob = -bits * Math.LN2;
  $("card-token").textContent = visible(span.textContent);
  $("card-figures").textContent = `${percent(logprob)}, ${bits.toFixed(2)} bits`;
  let rows = tokens.map((one) => [one.token, one.logprob]);
  if (tokens.length === 1) {
    rows = Object.entries({ [tokens[0].token]: logprob, ...tokens[0].alternatives }).sort((a, b) => b[1] - a[1]);
  }
  $("card-caption").textContent =
    tokens.length === 1 ? "likeliest, before temperature and top-k" : `made of ${count(tokens.length)}`;
  const taken = tokens.length === 1 ? tokens[0].token : null;
  $("card-rows").replaceChildren(...rows.map((row) => cardRow(...row, row[0] === taken)));
  shown = span;
  span.classList.add("shown");
  span.setAttribute("aria-describedby", "card");
  $("card").hidden = false;
  placeCard();
}

function cardRow(token, logprob, taken) {
  const row = document.createElement("tr");
  const [name, bar, figure] = ["th", "td", "td"].map((kind) => row.appendChild(document.createElement(kind)));
  row.className = taken ? "taken" : "";
  name.scope = "row";
  name.textContent = visible(token);
  const line = bar.appendChild(document.createElement("span"));
  line.className = "bar";
  line.style.width = `${100 * Math.exp(logprob)}%`;
  figure.textContent = percent(logprob);
  return row;
}

function placeCard() {
  if (!shown) return;
  const word = shown.getClientRects()[0];
  const { offsetWidth: width, offsetHeight: height } = $("card");
  const below = word.bottom + 8;
  const top = below + height > innerHeight && word.top > height + 8 ? word.top - height - 8 : below;
  $("card").style.left = `${Math.max(8, Math.min(word.left, document.documentElement.clientWidth - width - 8))}px`;
  $("card").style.top = `${top}px`;
}

function hideCard() {
  clearTimeout(leaving);
  if (!shown) return;
  shown.classList.remove("shown");
  shown.removeAttribute("aria-describedby");
  $("card").hidden = true;
  shown = null;
}

/** Closes the card, or gives it back to the token that has the focus, once there was time to move the pointer onto it. */
function leave() {
  clearTimeout(leaving);
  leaving = setTimeout(() => {
    const focused = $("tokens").querySelector(":focus");
    if (focused) showCard(focused);
    else hideCard();
  }, 150);
}
const tokenAt = (event) => event.target.closest?.("#tokens .token");
// A move, not only being there: text may come to lie under a pointer that rests.
$("tokens").addEventListener("pointermove", (event) => tokenAt(event) && showCard(tokenAt(event)));
$("tokens").addEventListener("pointerout", (event) => event.pointerType === "mouse" && leave());
$("tokens").addEventListener("click", (event) => tokenAt(event)?.focus({ preventScroll: true }));
$("card").addEventListener("pointerover", () => clearTimeout(leaving));
$("card").addEventListener("pointerout", leave);
$("tokens").addEventListener("focusin", (event) => {
  for (const stop of $("tokens").querySelectorAll("[tabindex='0']")) stop.tabIndex = -1;
  event.target.tabIndex = 0;
  showCard(event.target);
});
$("tokens").addEventListener("focusout", hideCard);
addEventListener("scroll", placeCard, { passive: true });
addEventListener("resize", placeCard);

$("tokens").addEventListener("keydown", (event) => {
  const to = {
    ArrowRight: (span) => span.nextElementSibling,
    ArrowLeft: (span) => span.previousElementSibling,
    ArrowDown: (span) => onNextLine(span, "nextElementSibling"),
    ArrowUp: (span) => onNextLine(span, "previousElementSibling"),
    Home: () => $("tokens").firstElementChild,
    End: () => $("tokens").lastElementChild,
  }[event.key]?.(event.target);
  if (to === undefined) return;
  event.preventDefault();
  to?.focus();
});

/** The token nearest above or below, as it stands on the screen. */
function onNextLine(span, direction) {
  const from = span.getBoundingClientRect();
  const middle = (from.left + from.right) / 2;
  let best = null;
  let distance = Infinity;
  let line = null;
  for (let other = span[direction]; other; other = other[direction]) {
    const box = other.getBoundingClientRect();
    if (Math.abs(box.bottom - from.bottom) < 4) continue;
    line ??= box.bottom;
    if (Math.abs(box.bottom - line) >= 4) break;
    const off = Math.abs((box.left + box.right) / 2 - middle);
    if (off < distance) [best, distance] = [other, off];
  }
  return best;
}

// --- settings and looks

function showSettings() {
  const topK = Number($("top-k").value);
  const words = topK < ALL_TOKENS ? String(topK) : "all";
  $("temperature-value").textContent = Number($("temperature").value).toFixed(2);
  $("top-k-value").textContent = words;
  $("top-k").setAttribute("aria-valuetext", words);
}
for (const id of ["temperature", "top-k"]) $(id).addEventListener("input", showSettings);
$("colours").addEventListener("change", () => $("story").classList.toggle("coloured", $("colours").checked));

const systemDark = matchMedia("(prefers-color-scheme: dark)");
function showTheme() {
  const { theme: chosen } = document.documentElement.dataset;
  $("theme").setAttribute("aria-pressed", chosen ? chosen === "dark" : systemDark.matches);
}
$("theme").addEventListener("click", () => {
  const theme = $("theme").getAttribute("aria-pressed") === "true" ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  remember("localStorage", THEME_NAME, theme);
  showTheme();
});
systemDark.addEventListener("change", showTheme);

$("key").value = recall("sessionStorage", KEY_NAME) ?? "";
const lastTheme = recall("localStorage", THEME_NAME);
if (lastTheme) document.documentElement.dataset.theme = lastTheme;
showSettings();
showTheme();
learnModel().catch((error) => ($("error").textContent = error.message));
