// Explanations of marks and cells: shown by pointer, focus or tap; Escape hides them; the pointer may rest on them.
const tips = new WeakMap();
const tip = $("tip");
let tipped = null;
let hiding = 0;

function explain(element, text) {
  tips.set(element, text);
  element.classList.add("tipped");
  return element;
}

const tippedOf = (event) => (event.target instanceof Element ? event.target.closest(".tipped") : null);

function showTip(element) {
  clearTimeout(hiding);
  if (!element || element === tipped) return;
  hideTip();
  tipped = element;
  tip.textContent = tips.get(element)();
  tip.hidden = false;
  element.setAttribute("aria-describedby", "tip");
  // Inside a modal dialog only what the dialog holds is shown.
  (element.closest("dialog") ?? document.body).append(tip);
  placeTip(element.getBoundingClientRect(), tip.getBoundingClientRect());
}

function placeTip(at, own) {
  const below = at.bottom + 6 + own.height < innerHeight;
  tip.style.left = `${Math.max(6, Math.min(at.left, innerWidth - own.width - 6))}px`;
  tip.style.top = `${below ? at.bottom + 6 : Math.max(6, at.top - own.height - 6)}px`;
}

function hideTip() {
  clearTimeout(hiding);
  tipped?.removeAttribute("aria-describedby");
  tipped = null;
  tip.hidden = true;
}

function hideSoon() {
  clearTimeout(hiding);
  hiding = setTimeout(hideTip, 150);
}

document.addEventListener("pointerover", (event) => (event.target === tip ? clearTimeout(hiding) : showTip(tippedOf(event))));
document.addEventListener("pointerout", (event) => void ((tippedOf(event) || event.target === tip) && hideSoon()));
document.addEventListener("focusin", (event) => void (tippedOf(event)?.matches(":focus-visible") && showTip(tippedOf(event))));
document.addEventListener("focusout", hideTip);
document.addEventListener("click", (event) => showTip(tippedOf(event)));
document.addEventListener("keydown", (event) => void (event.key === "Escape" && hideTip()));
addEventListener("scroll", hideTip, true);
